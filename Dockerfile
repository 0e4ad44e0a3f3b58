# JupyterLab with the study, on a CPU or a GPU that torch's own CUDA supports:
#   docker build -t mammo . && docker run -it -p 8888:8888 mammo          (on a GPU machine: docker run --gpus all ...)
# With mamba-ssm's kernel, from an image that has nvcc of torch's CUDA version (30 minutes or more):
#   docker build -t mammo-cuda --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg EXTRA=mamba-ssm .
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRA=""

# scikit-learn and torch need an OpenMP runtime, records of a run need git; the CUDA image has no Python
RUN apt-get update && apt-get install -y --no-install-recommends git libgomp1 \
        $(command -v python3 >/dev/null || echo python3 python3-venv python3-dev g++) \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home study && install -d -o study -g study /srv/mammo
USER study
WORKDIR /srv/mammo
COPY --chown=study:study . .
RUN python3 -m venv .venv && .venv/bin/pip install -q --no-cache-dir -r requirements.lock -e ".[demo,test]"
RUN if [ "$EXTRA" = mamba-ssm ]; then .venv/bin/pip install -q --no-cache-dir ninja setuptools wheel packaging \
    && MAMBA_KEEP_CUDA_BUILD=TRUE .venv/bin/pip install --no-cache-dir --no-build-isolation "mamba-ssm>=2.3,<2.4"; fi
ENV PATH="/srv/mammo/.venv/bin:$PATH"
EXPOSE 8888
# data and results are inside the container unless a folder is mounted: -v "$PWD/results:/srv/mammo/results"
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
