#!/usr/bin/env bash
# An environment with NVIDIA's Triton Inference Server in it, for a CPU and without a container:
#     tests/serving/environment.sh FOLDER
# The server is that of the package nvidia-pytriton, which is taken as an archive: it holds the server, its Python
# backend and a stub for each version of Python, and its own dependencies would bring an older numpy.
set -euo pipefail
folder="$1"
here="$(cd "$(dirname "$0")" && pwd)"
python="${PYTHON:-python3}"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
rm -rf "$folder" && "$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-compile -r "$here/requirements.txt"
# The code under test, not a copy of it.
echo "$(cd "$here/../.." && pwd)" >"$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/lifedeploy.pth"
"$folder/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder/download" nvidia-pytriton==0.7.0
"$folder/bin/python" -m zipfile -e "$folder"/download/nvidia_pytriton-*.whl "$folder/triton"
rm -r "$folder/download"
server="$folder/triton/pytriton/tritonserver" # it looks for its libraries beside the package
chmod +x "$server/bin/tritonserver"
install -m 755 "$server/python_backend_stubs/$version/triton_python_backend_stub" "$server/backends/python/"
rm -r "$server/python_backend_stubs" # 25 MB for other versions
touch "$folder/.installed"
