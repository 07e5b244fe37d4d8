#!/usr/bin/env bash
# On a bare Debian 12: installs modicum into .venv, then asks the bundled model about the bundled handbook.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

need_debian g++ libpcre2-dev libxxhash-dev python3-dev python3-venv
need_venv
step 'Building and installing modicum' pip install -q --no-build-isolation \
  --config-settings build-dir=build/quickstart .
printf '\n'
modicum demo
printf '\nAsk something yourself: .venv/bin/modicum --help\n'
