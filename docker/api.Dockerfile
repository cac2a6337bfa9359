# The API: no torch, no model, no media library.
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/fada
COPY pyproject.toml README.md LICENSE NOTICE docker/constraints.txt hatch_build.py ./
COPY clients/python/pyproject.toml client.toml
# Dependencies first, so that a change of the code does not reinstall them.
RUN python -c "import tomllib; p, c = (tomllib.load(open(n, 'rb'))['project'] for n in ('pyproject.toml', 'client.toml')); print(*p['dependencies'], *c['dependencies'], *p['optional-dependencies']['otel'], sep='\n')" > needed.txt
RUN /opt/fada/bin/python -m pip install -r needed.txt -c constraints.txt
COPY clients/python clients/python
COPY fada fada
COPY server server
RUN /opt/fada/bin/python -m pip install --no-deps ./clients/python . \
    && /opt/fada/bin/fada licenses --cyclonedx > /opt/fada/bill.cdx.json

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin fada \
    && install --directory --owner=10001 --group=10001 --mode=700 /var/lib/fada/data
COPY --from=build /opt/fada /opt/fada
ENV PATH=/opt/fada/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /opt/fada
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["fada", "health", "api"]
ENTRYPOINT ["fada"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
