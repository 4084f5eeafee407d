# shellcheck shell=sh
# SPDX-License-Identifier: BSL-1.0
# What tests/run and examples/run share, sourced with the project's folder as working directory: the Debian packages
# that a task needs, and a configured build folder.
# shellcheck disable=SC2034 # the lists of packages are for those who source this

packages_to_build='ca-certificates g++ cmake ninja-build ccache pkg-config libboost1.81-dev libfmt-dev'
# Without libc6-dbg valgrind starts no program at all.
packages_to_test='catch2 spin valgrind libc6-dbg libssl-dev libseccomp-dev'
# llvm-16 has the symbolizer, without which the names in tsan.supp match nothing.
packages_to_sanitize='clang-16 libclang-rt-16-dev llvm-16'
# The last two have the pictures that the gallery shows.
packages_for_examples='libjpeg-dev libpng-dev desktop-base lxde-common'
packages_for_vm='qemu-system-x86 busybox-static cpio'
packages_to_format='clang-format-14 git'

say() {
  printf '== %s\n' "$*"
}

# need_packages NAME... installs those that are missing. When there are none it asks no server for anything.
need_packages() {
  if ! command -v apt-get >/dev/null; then
    say "no apt-get here: taking it that these are installed: $*"
    return
  fi
  missing=
  for package in "$@"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    if [ "$state" != installed ]; then
      missing="$missing $package"
    fi
  done
  if [ -z "$missing" ]; then
    return
  fi

  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      say "these packages are missing, and installing them needs root or sudo:$missing"
      exit 1
    fi
    as_root=sudo
  fi
  say "installing$missing"
  $as_root apt-get -qq -o DPkg::Lock::Timeout=300 update
  # shellcheck disable=SC2086 # each name is a word of its own
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y \
    --no-install-recommends $missing >/dev/null
}

# configure PRESET [TARGET] makes .build/PRESET ready, unless it is: Ninja itself sees when the CMake files change, but
# not when the presets do, nor that a package which TARGET lacked has come.
configure() {
  ninja_file=.build/$1/build.ninja
  if [ -f "$ninja_file" ] && [ -z "$(find CMakePresets.json -newer "$ninja_file")" ]; then
    if [ -z "${2-}" ] || grep -q "^build $2: phony" "$ninja_file"; then
      return
    fi
  fi
  say "configuring .build/$1"
  mkdir -p .build
  cmake --preset "$1" >".build/$1.configure.log" 2>&1 || {
    cat ".build/$1.configure.log"
    exit 1
  }
}
