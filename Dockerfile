# Fastlane's image, for the API and for workers alike:
#
#     docker build -t fastlane .
#     docker build -t fastlane --build-arg PLUGINS=docker .           only what you need of docker, redis and mongo
#     docker build -t fastlane --build-arg BASE=python:3.11-slim@sha256:... .
#
# Without a network: put the wheels of everything into dist/, then add --build-arg PIP_NO_INDEX=1. On a machine with the
# base's Python and kind of processor,
#
#     pip wheel --wheel-dir dist --constraint constraints.txt '.[mongo,redis]' ./plugins/fastlane_docker hatchling
#
# gathers them. BASE is any image of Debian's kind with Python 3.11 or newer and its module venv.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG PLUGINS=docker,redis,mongo
ARG PIP_NO_INDEX
ARG PIP_INDEX_URL
ENV PIP_FIND_LINKS=/src/dist PIP_CONSTRAINT=/src/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/fastlane
COPY . .
# Fastlane's own distributions come from here, whatever an index or dist/ has by their names.
RUN /build/bin/pip install --quiet hatchling \
    && /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . ./plugins/* \
    && for wheel in /wheels/*.whl; do \
        echo "$(basename "${wheel}" | cut -d - -f 1 | tr _ -) @ file://${wheel}"; \
    done > /wheels/own.txt \
    && /build/bin/pip --python /opt/fastlane/bin/python install --quiet --constraint /wheels/own.txt \
        "fastlane-core[${PLUGINS}] @ file://$(echo /wheels/fastlane_core-*.whl)"

FROM ${BASE}
RUN groupadd --gid 10001 fastlane \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/fastlane fastlane \
    && install --directory --owner fastlane --group fastlane --mode 0700 /var/lib/fastlane
COPY --from=build /opt/fastlane /opt/fastlane
COPY deploy/healthcheck.py /opt/fastlane/
# Settings come from the environment, as FASTLANE_<KEY>; FASTLANE_CONFIG may name a file of them that is mounted.
ENV PATH=/opt/fastlane/bin:$PATH PYTHONUNBUFFERED=1 FASTLANE_SQLITE_PATH=/var/lib/fastlane/fastlane.db
# By number, so that an orchestrator sees that it is not root.
USER 10001:10001
WORKDIR /var/lib/fastlane
VOLUME /var/lib/fastlane
EXPOSE 10000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 \
    CMD ["/opt/fastlane/bin/python", "/opt/fastlane/healthcheck.py"]
ENTRYPOINT ["fastlane"]
CMD ["api", "--host", "0.0.0.0"]
