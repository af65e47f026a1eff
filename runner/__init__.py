"""Runners: in this process, in worker processes, and over the wire."""

from __future__ import annotations

from .base import Runner, SimpleRunner

__all__ = ["Runner", "SimpleRunner"]
