# shellcheck shell=bash
# Sourced by the scripts: installs what is missing, one line of progress a step, details only where a step fails.
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export CMAKE_BUILD_PARALLEL_LEVEL

# step TITLE COMMAND…: runs the command quietly and prints how long it took; ends the script where it fails.
step() {
  local title=$1 start=$SECONDS log
  shift
  log=$(mktemp)
  printf '%-64s' "$title …"
  if "$@" >"$log" 2>&1 </dev/null; then
    printf '%4d s\n' $((SECONDS - start))
    rm -f "$log"
  else
    printf 'failed\n\n'
    tail -n 60 "$log" >&2
    rm -f "$log"
    exit 1
  fi
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=DEBIAN_FRONTEND "$@"; fi
}

install_debian() {
  as_root apt-get update -qq
  as_root apt-get install -y -qq --no-install-recommends "$@"
}

# need_debian PACKAGE…: installs those that are missing. Elsewhere than on Debian they are the reader's to install.
need_debian() {
  local missing=() package
  if ! command -v apt-get >/dev/null; then
    printf 'This is no Debian: see CONTRIBUTING.md for what has to be installed.\n'
    return
  fi
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    step "Installing ${missing[*]}" install_debian "${missing[@]}"
  fi
}

# need_venv: a virtual environment .venv with what pyproject.toml builds with.
need_venv() {
  [ -x .venv/bin/pip ] || step 'Making .venv' python3 -m venv .venv
  step 'Installing Python packages' .venv/bin/pip install -q 'scikit-build-core>=1.1.2' 'pybind11>=3.1.0' \
    'nlohmann-json>=3.12' 'cmeel-eigen>=3.4' 'cmake>=3.25' ninja
  PATH=$PWD/.venv/bin:$PATH
}
