"""Standing: where a worker is with its dispatcher, whichever plane it talks over.

What it is      told what the dispatcher said and whether the connection is there, it says
                what to do: stay, dial anew, or leave.
Guarantees      1. once it is to leave, it is to leave for good;
                2. pauses between two tries double, up to a bound, and start anew once a
                   dispatcher has said welcome.
Threads         `asked` may be set by any; everything else is for one thread at a time.
"""

from __future__ import annotations

import enum
import threading

from .wire import Type

__all__ = ["Next", "Standing"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0


class Next(enum.Enum):
    STAY = enum.auto()
    DIAL = enum.auto()  # this connection is over; another after a pause
    LEAVE = enum.auto()  # run what was given, if the dispatcher still wants it, and end


class Standing:
    """`redials`: a connection that is lost is dialled anew, until somebody asks the worker to leave."""

    def __init__(self, *, redials: bool) -> None:
        self.asked = threading.Event()  # somebody here wants the worker to leave
        self.over = False
        self.dismissed = False  # no batch follows; those that were given are waited for
        self.refused = False
        self.refusal = ""  # why it is over, if that was nobody's wish
        self._redials = redials
        self._welcome = False
        self._pause_s = FIRST_PAUSE_S

    def hear(self, kind: int, text: str = "") -> None:
        """What the dispatcher said of the connection itself."""
        match kind:
            case Type.WELCOME:
                self._welcome = True
                self._pause_s = FIRST_PAUSE_S
            case Type.STOP | Type.BYE:
                self.dismissed = True
            case Type.ERROR:
                self.refused = True
                self.refusal = text

    def next(self, *, lost: bool) -> Next:
        """To be asked when everything that came was heard."""
        step = self._step(lost)
        if step is Next.DIAL:
            # A refusal behind the loss was the new dispatcher's word on what was meant for the old.
            self._welcome = self.refused = False
            self.refusal = ""
        self.over |= step is Next.LEAVE
        return step

    def _step(self, lost: bool) -> Next:
        if self.over or self.dismissed:
            return Next.LEAVE
        # Nobody is there who could say that nothing is on its way.
        if self.asked.is_set() and (lost or not self._welcome):
            return Next.LEAVE
        if lost and self._redials:
            return Next.DIAL
        if lost:
            self.refusal = self.refusal or "the connection to the dispatcher was lost"
        return Next.LEAVE if lost or self.refused else Next.STAY

    def pause_s(self) -> float:
        """How long to wait before the next try."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s
