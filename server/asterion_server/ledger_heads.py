"""Where each site's privacy ledger ended when it last reported, over all runs of a coordinator.

A site whose ledger was put back from a backup has forgotten charges and cannot know it. So it tells
the coordinator the head of its ledger, a hash, with each private report, and is shown it again with
the next order: a ledger that lacks it stops. The head says nothing else; another coordinator of the
same site has other heads. Of two runs at once the report that came last counts.
"""

import re
from pathlib import Path

from asterion_shared.errors import FileProblemError
from asterion_shared.files import write_atomically

FOLDER = "ledger_heads"
"""In the coordinator's folder; it has one file a site."""


class LedgerHeads:
    """The heads in a folder.

    Args:
        folder: made when the first head is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, site: str) -> str | None:
        """The head that the site said last, 64 hex digits; None when it never said one.

        Raises:
            FileProblemError: the file cannot be read, or holds something else.
        """
        path = self._folder / site
        try:
            head = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            head = ""
        if re.fullmatch(r"[0-9a-f]{64}", head) is None:
            fix = "remove it, and the site's next report will bring it back"
            raise FileProblemError(path, "is not the head of a site's privacy ledger", fix)
        return head

    def keep(self, site: str, head: str) -> None:
        """Keep a head, durably; only then may the report it came with be used.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        write_atomically(self._folder / site, f"{head}\n".encode())
