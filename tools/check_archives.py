"""Fail unless the wheel and the sdist hold what they should, and nothing that should not travel.

python tools/check_archives.py dist 0.1.0
"""

import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = [  # what is read by its path, and so missed only when somebody uses it
    "evaluation/report/assets/report.css",
    "evaluation/report/assets/report.html.j2",
    "evaluation/report/assets/report.js",
    "py.typed",
    "questions/describe.txt",
    "questions/instructions.txt",
    "questions/judge.txt",
    "questions/several.txt",
    "sample/LICENSE",
    "sample/general/passages.jsonl",
    "sample/handbook/lamp-desk.md",
    "sample/questions.jsonl",
    "serving/answer.txt",
    "serving/judge.txt",
]
UNWANTED = (".pyc", ".ipynb_checkpoints", ".safetensors", ".sqlite", ".env", ".git/", ".venv/", "__pycache__")


def main(folder: str, version: str) -> None:
    (wheel,), (sdist,) = (list(Path(folder).glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    tree = {
        path.as_posix() for path in Path("embedtune").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    problems = [
        f"{archive.name} is not version {version}" for archive in (wheel, sdist) if f"-{version}" not in archive.name
    ]
    problems += [f"the tree has no embedtune/{name}" for name in NEEDED if f"embedtune/{name}" not in tree]
    for archive, names in (("wheel", in_wheel), ("sdist", in_sdist)):
        problems += [f"the {archive} lacks {name}" for name in sorted(tree - names)]
        problems += [f"the {archive} holds {name}" for name in sorted(names) if any(part in name for part in UNWANTED)]
    beside = {name for name in in_wheel if not name.startswith(("embedtune/", f"embedtune-{version}.dist-info/"))}
    problems += [f"the wheel holds {name} outside the package" for name in sorted(beside)]
    problems += [f"the sdist lacks {name}" for name in ("README.md", "CHANGELOG.md", "LICENSE") if name not in in_sdist]
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{wheel.name}: {len(in_wheel)} files, {wheel.stat().st_size:,} bytes")
    print(f"{sdist.name}: {len(in_sdist)} files, {sdist.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
