#!/bin/sh
# Runs Python over kernels that were built with sanitizers: sanitize.sh address|thread ARGUMENT...
# The package and its tests are copied beside the build, so that the installed kernels stay as they are; a virtual
# environment without the editable install sees the copies and the packages of $VENV.
set -eu
kind=$1
shift
case $kind in
    address) sanitizers=address,undefined runtime=libasan.so ;;
    thread) sanitizers=thread runtime=libtsan.so ;;
    *) echo "sanitize.sh: address or thread, not $kind" >&2 && exit 2 ;;
esac
cxx=${CXX:-g++}
python=$(cd "$(dirname "${VENV:-.venv}/bin/python")" && pwd)/python
folder=build/sanitize/$kind
tree=$folder/tree

"$python" -m nanobind --cmake_dir >/dev/null 2>&1 || "$python" -m pip install --quiet 'nanobind>=2.9'
command -v cmake >/dev/null || "$python" -m pip install --quiet cmake
PATH=$PATH:$(dirname "$python") cmake -S . -B "$folder/build" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCMAKE_CXX_COMPILER="$cxx" -DROSEINFER_SANITIZE=$sanitizers -DPython_EXECUTABLE="$python" >/dev/null
PATH=$PATH:$(dirname "$python") cmake --build "$folder/build" --parallel "$(getconf _NPROCESSORS_ONLN)"

rm -rf "$tree"
mkdir -p "$tree"
cp -R roseinfer tests pyproject.toml "$tree"
rm -f "$tree"/roseinfer/backends/native/*.so
cp "$folder"/build/_native*.so "$tree/roseinfer/backends/native"
test -x "$folder/venv/bin/python" || "$python" -m venv --without-pip "$folder/venv"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
interpreter=$(pwd)/$folder/venv/bin/python

cd "$tree"
# Without libstdc++ beside it the runtime finds no exceptions to intercept.
preload="$($cxx -print-file-name=$runtime) $($cxx -print-file-name=libstdc++.so.6)"
export PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:handle_segv=1"
export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1"
export LD_PRELOAD="$preload"

file=$("$interpreter" -c 'import roseinfer.backends.native._native as kernels; print(kernels.__file__)')
case $file in
    "$(pwd)"/*) ;;
    *) echo "sanitize.sh: the kernels would come from $file" >&2 && exit 1 ;;
esac
exec "$interpreter" "$@"
