"""What the children of modelbroker.run execute first: python imports it by itself at its start.

Any Python may be a child: the text is valid for all of them. It leaves sys.path and the module
`sitecustomize` as they are without it.
"""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _share():  # type: () -> None
    """Never an error: whatever is missing here, the program runs as without us."""
    if os.environ.get("MODELBROKER_AUTO") != "1" or sys.version_info < (3, 10):
        return
    # Ours is not on the path of every child, and shall not stay on it.
    root = os.path.dirname(os.path.dirname(os.path.dirname(_FOLDER)))
    sys.path.insert(0, root)
    try:
        from modelbroker._sharing.install import install_for_this_process
    except Exception:
        return
    finally:
        sys.path.remove(root)
    install_for_this_process(is_child=True)


def _be_as_without_us():  # type: () -> None
    """Runs the sitecustomize behind this one. Its errors go to `site`, also that there is none."""
    sys.path[:] = [path for path in sys.path if not path or os.path.abspath(path) != _FOLDER]
    this = sys.modules.pop("sitecustomize")  # kept: old Pythons empty a module that nobody has
    __import__("sitecustomize")
    del this


_share()
_be_as_without_us()
