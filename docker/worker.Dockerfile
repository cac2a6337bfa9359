# The worker. Two targets: `cpu`, the default, and `gpu`, with CUDA's torch and TensorRT.
FROM python:3.11.13-slim-bookworm AS needed
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/fada
COPY pyproject.toml README.md LICENSE NOTICE docker/constraints.txt hatch_build.py ./
COPY clients/python/pyproject.toml client.toml
# torch separately, because the index decides which build is installed.
RUN python -c "import tomllib; p, c = (tomllib.load(open(n, 'rb'))['project'] for n in ('pyproject.toml', 'client.toml')); x = p['optional-dependencies']; print(*p['dependencies'], *c['dependencies'], *x['serve'], *x['c2pa'], *x['otel'], sep='\n')" > needed.txt \
    && grep '^torch==' needed.txt > torch.txt

FROM needed AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/fada/bin/python -m pip install -r torch.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
RUN /opt/fada/bin/python -m pip install -r needed.txt -c constraints.txt
COPY clients/python clients/python
COPY fada fada
COPY server server
COPY engines engines
COPY media media
COPY model model
RUN /opt/fada/bin/python -m pip install --no-deps ./clients/python . \
    && /opt/fada/bin/fada licenses --cyclonedx > /opt/fada/bill.cdx.json

FROM needed AS build-gpu
# For A100, H100 and B200: tensorrt-datacenter, which TensorRT for RTX leaves out.
ARG TENSORRT=tensorrt
RUN python -c "import sys, tomllib; x = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies'][sys.argv[1]]; print(*(n for n in x if not n.startswith('fada[')), sep='\n')" "$TENSORRT" > tensorrt.txt
# PyPI has the CUDA build.
RUN /opt/fada/bin/python -m pip install -r torch.txt
RUN /opt/fada/bin/python -m pip install -r needed.txt -r tensorrt.txt -c constraints.txt
COPY clients/python clients/python
COPY fada fada
COPY server server
COPY engines engines
COPY media media
COPY model model
RUN /opt/fada/bin/python -m pip install --no-deps ./clients/python . \
    && /opt/fada/bin/fada licenses --cyclonedx > /opt/fada/bill.cdx.json

FROM python:3.11.13-slim-bookworm AS runtime
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin fada \
    && install --directory --owner=10001 --group=10001 /var/cache/fada /var/lib/fada/engines \
        /var/lib/fada/data
# Compiled kernels and engines are kept here; mount volumes to make the next start faster.
ENV PATH=/opt/fada/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/var/cache/fada
ENV FADA_ENGINES=/var/lib/fada/engines
USER 10001:10001
WORKDIR /opt/fada
HEALTHCHECK --interval=15s --timeout=10s --start-period=90s --retries=3 CMD ["fada", "health", "worker"]
ENTRYPOINT ["fada"]
CMD ["worker"]

FROM runtime AS gpu
# `video` has NVENC, `utility` nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENV CUDA_CACHE_PATH=/var/cache/fada/cuda
# With FADA_ENGINES_BUILD=only a worker joins when its engines are built, within an hour.
HEALTHCHECK --interval=15s --timeout=10s --start-period=65m --retries=8 CMD ["fada", "health", "worker"]
COPY --from=build-gpu /opt/fada /opt/fada

FROM runtime AS cpu
COPY --from=build-cpu /opt/fada /opt/fada
