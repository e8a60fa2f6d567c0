"""Writes to disk such that a crash leaves the old content or the new one, never a part, and reads beside such writes.

A folder is built beside its place, flushed to the disk, and put in its place in one step: Linux and macOS exchange two folders
at once, so that the path always holds the old content or the new, whole. Elsewhere (Windows, a few network disks) the old
folder is renamed and then the new one; between the two nothing is at the path for a moment. If the process dies there, the
old folder is beside the path: `read_folder` reads it from there, and the next writer puts it back.

No symbolic link and no pointer file is needed, so a saved model stays a plain SentenceTransformer folder. A reader opens one
file after the other, so it may see files of two versions: `read_folder` notices that the folder is another one than before,
and reads again. What a reader has opened or mapped stays readable until it is closed. On Windows a folder whose files are open
cannot be replaced: the writer gets an error, and the old content stays.

A folder at its place is never changed, only replaced, so of several writers at once readers see one whole version after the
other. What a killed writer leaves is removed by the next one. A living writer holds a lock on its folder, which ends with the
process.
"""

from embedtune.storage.files import naming, read_record, reading, replace_file, sync
from embedtune.storage.folders import is_folder, merged_folder, read_folder, replaced_folder
from embedtune.storage.leftovers import abandoned, claimed, temporary_folder

__all__ = [
    "abandoned",
    "claimed",
    "is_folder",
    "merged_folder",
    "naming",
    "read_folder",
    "read_record",
    "reading",
    "replace_file",
    "replaced_folder",
    "sync",
    "temporary_folder",
]
