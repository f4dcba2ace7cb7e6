# What the scripts share: where things are built, and how what is missing gets installed.
# Sourced, never run. Everything said here goes to standard error: standard output is for data.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where the host and its tests are built, and where the guests are. One place for both scripts.
target_dir=${CARGO_TARGET_DIR:-$root/target}
case $target_dir in /*) ;; *) target_dir=$PWD/$target_dir ;; esac
if [[ -n ${CARGO_TARGET_DIR:-} ]]; then
  guest_target_dir=$target_dir/guests
else
  guest_target_dir=$root/guest-examples/target
fi
guest_release_dir=$guest_target_dir/wasm32-wasip2/release

say() { printf '%s\n' "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command as root: directly, or by sudo where it asks for no password or can ask for one.
# Returns 127 where there is no way.
as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
    sudo "$@"
  else
    return 127
  fi
}

# apt_install WHAT PACKAGE...: installs the packages, or says how to. The package lists are only
# updated when the packages can't be had without. RUNLEVEL=1 keeps a package from starting a
# service of its own.
apt_install() {
  local what=$1
  shift
  local manual="install $what; on Debian and Ubuntu: sudo apt-get install $*"
  command -v apt-get >/dev/null || fail "$what is missing; $manual"
  say "installing $what ($*); this takes up to a minute"
  local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o Dpkg::Use-Pty=0)
  as_root true || fail "$what is missing and this user can't install it; $manual"
  as_root "${apt[@]}" install --yes --no-install-recommends "$@" >&2 </dev/null && return
  as_root "${apt[@]}" update >&2 </dev/null || fail "the package lists can't be updated; $manual"
  as_root "${apt[@]}" install --yes --no-install-recommends "$@" >&2 </dev/null || fail "$what can't be installed; $manual"
}

# The toolchain that rust-toolchain.toml names, with the target that guests are built for.
require_rust() {
  if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  fi
  command -v cargo >/dev/null ||
    fail "cargo is missing; install Rust by: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  local channel
  channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$root/rust-toolchain.toml")
  if command -v rustup >/dev/null; then
    if ! has_toolchain "$channel"; then
      say "installing Rust $channel with the target wasm32-wasip2; this takes about a minute"
      rustup toolchain install "$channel" --profile minimal --no-self-update \
        --component rustfmt --component clippy --target wasm32-wasip2 >&2 ||
        fail "Rust $channel can't be installed; try: rustup toolchain install $channel --target wasm32-wasip2"
    fi
  elif [[ ! -d $(rustc --print sysroot)/lib/rustlib/wasm32-wasip2 ]]; then
    fail "this Rust has no target wasm32-wasip2 and there is no rustup to add it; install rustup from https://rustup.rs"
  fi
}

has_toolchain() {
  local components
  components=$(rustup component list --toolchain "$1" --installed 2>/dev/null) || return
  [[ $components == *rustfmt* && $components == *clippy* && $components == *rust-std-wasm32-wasip2* ]]
}

# A C compiler with its headers: SQLite and the cryptography of TLS are C code.
require_c_compiler() {
  local compiler=${CC:-cc} try
  try=$(mktemp -d)
  printf '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n' >"$try/try.c"
  if ! "$compiler" -o "$try/try" "$try/try.c" 2>/dev/null; then
    rm -rf "$try"
    [[ $(uname) != Darwin ]] || fail "a C compiler is missing; install it by: xcode-select --install"
    [[ -z ${CC:-} ]] || fail "the C compiler \`$CC\` (from CC) can't build a program; unset CC or mend it"
    apt_install "a C compiler" gcc libc6-dev
  fi
  rm -rf "$try"
}

# stop PID: ends a process that this script started, and waits for it; kills it after 20 s.
stop() {
  local pid=$1 turn
  kill -TERM "$pid" 2>/dev/null || return 0
  for ((turn = 0; turn < 200; turn++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}
