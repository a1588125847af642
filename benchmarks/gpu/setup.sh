#!/usr/bin/env bash
# Makes the environment for benchmarks/gpu: the pinned packages of requirements.txt and this checkout.
#
#   setup.sh [--wheels FOLDER] [--system] ENVIRONMENT     from PyPI, or from a folder of wheels
#   setup.sh --download FOLDER [--system]                 fetch that folder, with the same Python as there
#
# --system: PyTorch, Triton's compiler and CUDA's libraries are those of the machine's own Python. PYTHON names
# the interpreter (3.11 or 3.12, with a shared libpython, which the embedded server needs).
set -euo pipefail

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
wheels="" download="" environment="" system=""
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) [ $# -gt 1 ] || usage; wheels=$2; shift ;;
        --download) [ $# -gt 1 ] || usage; download=$2; shift ;;
        --system) system=yes ;;
        -*) usage ;;
        *) [ -z "$environment" ] || usage; environment=$1 ;;
    esac
    shift
done
[ -n "$download$environment" ] || usage

wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
if [ -n "$system" ]; then
    grep -vE '^(torch|torchvision|triton)==|^cuda-|^nvidia-[^p]' "$here/requirements.txt" > "$wanted"
else
    cp "$here/requirements.txt" "$wanted"
fi

if [ -n "$download" ]; then
    "$python" -m pip download --no-deps --only-binary=:all: --dest "$download" --requirement "$wanted"
    exit
fi

"$python" -m venv --clear "$environment"
if [ -n "$system" ]; then
    # Not --system-site-packages, which misses the packages of a Python that is a virtual environment itself.
    packages=$("$environment/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$packages/system.pth"
fi
# The file lists everything: pip resolves nothing, and takes onnxruntime-gpu for the onnxruntime that others name.
install=("$environment/bin/python" -m pip install --disable-pip-version-check --no-deps)
[ -z "$wheels" ] || install+=(--no-index --find-links "$wheels")
"${install[@]}" --requirement "$wanted"
"${install[@]}" --no-build-isolation --editable "$here/../.."
"$environment/bin/python" - <<'END'
import onnxruntime
import torch

print("PyTorch", torch.__version__, "for CUDA", torch.version.cuda, "- a GPU:", torch.cuda.is_available())
print("ONNX Runtime", onnxruntime.__version__, *onnxruntime.get_available_providers())
END
