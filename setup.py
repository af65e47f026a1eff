"""The old verbs, mapped to pip. meson.build is the only list of sources."""

import subprocess
import sys

VERBS = {
    "install": ["install", "."],
    "develop": ["install", "--no-build-isolation", "-e", "."],
    "bdist_wheel": ["wheel", "--no-deps", "-w", "dist", "."],
}

if __name__ == "__main__":
    verb = sys.argv[1] if len(sys.argv) == 2 else None
    if verb not in VERBS:
        sys.exit(f"built by meson-python; use pip install . (or one of: {', '.join(VERBS)})")
    sys.exit(subprocess.call([sys.executable, "-m", "pip", *VERBS[verb]]))
