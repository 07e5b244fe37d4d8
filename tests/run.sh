#!/usr/bin/env bash
# Builds everything and runs every test, on a bare Debian 12: C++ (ctest), then Python (pytest).
# Models and corpora are read from MODICUM_DATA, ../shared/data where it is not set; tests that need them skip without.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

if [ -z "${MODICUM_DATA:-}" ] && [ -d ../shared/data ]; then
  MODICUM_DATA=$(cd ../shared/data && pwd)
  export MODICUM_DATA
fi
mkdir -p build
results=$PWD/build
rm -f "$results"/ctest.xml "$results"/pytest.xml

need_debian g++ libpcre2-dev libxxhash-dev python3-dev python3-venv nlohmann-json3-dev catch2 libbenchmark-dev libeigen3-dev
need_venv
step 'Configuring C++' cmake --preset dev
step 'Building C++' cmake --build --preset dev

failed=0
printf '\nC++ tests\n'
ctest --preset dev -j "$CMAKE_BUILD_PARALLEL_LEVEL" --timeout 1800 --no-tests=error \
  --output-junit "$results/ctest.xml" </dev/null | grep -vE '^ +Start | Passed ' || failed=1

printf '\n'
# By itself first: the version decides which build of it pip takes.
step 'Installing torch' pip install -q torch==2.13.0
step 'Building and installing the Python package' pip install -q --no-build-isolation \
  --config-settings build-dir=build/tests '.[test]'
# Without what it pins, which is older than transformers 5.
step 'Installing mergekit' pip install -q --no-deps mergekit==0.1.5 immutables click

printf '\nPython tests\n'
python -m pytest -q --junitxml="$results/pytest.xml" </dev/null || failed=1

python tests/summary.py "$results/ctest.xml" "$results/pytest.xml" || failed=1
exit "$failed"
