# The suite as a container whose entry point is `amortlit`, without root and without secrets. Build one of two variants:
#   docker build -t amortlit:cuda --build-arg VARIANT=cuda .
#   docker build -t amortlit:cpu --build-arg CPU_WHEELS=<address of PyTorch's index of CPU wheels> .
# and mount a volume for results, and a data set mirror if there is one:
#   docker run -v results:/amortlit/_runs -v "$PWD/mirror:/data:ro" amortlit:cpu run all --scale cpu
# The CUDA variant needs the NVIDIA container toolkit on the host (docker run --gpus all ...).
ARG VARIANT=cpu

FROM python:3.11-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 AMORTLIT_DATA=/data
RUN useradd --create-home --uid 1000 amortlit && install -d -o amortlit /amortlit /amortlit/_runs /data
WORKDIR /amortlit
COPY constraints.txt ./

FROM base AS cpu
ARG CPU_WHEELS
RUN pip install --no-cache-dir --index-url "${CPU_WHEELS:?say where the CPU wheels of PyTorch are}" "$(grep '^torch==' constraints.txt)"

FROM base AS cuda
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)"

# hadolint ignore=DL3006
FROM ${VARIANT}
WORKDIR /amortlit
COPY --chown=amortlit . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[cluster,hub]'
USER 1000
ENTRYPOINT ["amortlit"]
CMD ["--help"]
