# syntax=docker/dockerfile:1
# One recipe, two images:
#   docker build --target cpu -t loradock:cpu .
#   docker build --target gpu -t loradock:gpu .

FROM python:3.11-slim-trixie AS builder
WORKDIR /build
COPY locks/uv.txt locks/build.txt locks/
RUN pip install --no-cache-dir --require-hashes --requirement locks/uv.txt \
    && uv venv --python /usr/local/bin/python3.11 /opt/loradock
ENV VIRTUAL_ENV=/opt/loradock UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

FROM builder AS cpu-builder
COPY locks/cpu.txt locks/
# torch's CPU build lies on PyTorch's own index; the lock's hashes decide what is accepted from either.
RUN --mount=type=cache,target=/root/.cache/uv uv pip sync --require-hashes \
    --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match locks/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --no-deps --build-constraints locks/build.txt .

FROM builder AS gpu-builder
COPY locks/gpu.txt locks/
RUN --mount=type=cache,target=/root/.cache/uv uv pip sync --require-hashes locks/gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --no-deps --build-constraints locks/build.txt .

FROM python:3.11-slim-trixie AS runtime
# g++: torch and Triton compile kernels when the engine starts. libnuma1: vLLM's CPU kernels are linked against it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/loradock --shell /usr/sbin/nologin loradock \
    && install --directory --owner loradock --group loradock /var/lib/loradock /var/cache/loradock /models /adapters
ENV PATH=/opt/loradock/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache/loradock \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/loradock/inductor \
    TRITON_CACHE_DIR=/var/cache/loradock/triton \
    LORADOCK_HOST=0.0.0.0 \
    LORADOCK_ADAPTERS_DIR=/adapters \
    LORADOCK_STATE_DIR=/var/lib/loradock
USER 10001:10001
WORKDIR /var/lib/loradock
VOLUME ["/var/lib/loradock", "/var/cache/loradock"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.getenv('LORADOCK_PORT', '8000')}/livez\", timeout=4)"]
# The process itself gets SIGTERM: running streams finish before it ends.
ENTRYPOINT ["loradock"]
CMD ["serve"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-builder /opt/loradock /opt/loradock

FROM runtime AS cpu
COPY --from=cpu-builder /opt/loradock /opt/loradock
