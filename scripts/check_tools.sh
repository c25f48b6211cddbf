#!/bin/sh
# Says in one line which package is missing before pip would say it in two hundred.
python=${1:-python3}

fail() {
    echo "roseinfer: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python is missing: install python3 (Debian: apt install python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version) is too old: Python 3.10 or newer is needed (make PYTHON=python3.12)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Python's venv module is missing: apt install python3-venv"
command -v c++ >/dev/null || command -v "${CXX:-g++}" >/dev/null ||
    fail "no C++ compiler: apt install g++ (macOS: xcode-select --install)"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
[ -f "$header" ] || fail "Python's headers are missing ($header): apt install python3-dev"
