# Fastlane's image, for the API and for workers alike:
#
#     make wheels && docker build -t fastlane .
#     docker build -t fastlane --build-arg PLUGINS=docker .        only what you need of docker, redis and mongo
#
# dist/ may hold the wheels of all dependencies as well; then --build-arg PIP_NO_INDEX=1 builds without a network.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG PLUGINS=docker,redis,mongo
ARG PIP_NO_INDEX
COPY constraints.txt /
COPY dist/ /dist/
RUN python3 -m venv /opt/fastlane \
    && /opt/fastlane/bin/pip install --quiet --no-cache-dir --constraint /constraints.txt --find-links /dist \
        "fastlane-core[${PLUGINS}]" \
    && /opt/fastlane/bin/pip uninstall --quiet --yes pip setuptools

FROM ${BASE}
COPY --from=build /opt/fastlane /opt/fastlane
RUN useradd --system --create-home --home-dir /var/lib/fastlane --uid 10001 fastlane
ENV PATH=/opt/fastlane/bin:$PATH PYTHONUNBUFFERED=1
USER fastlane
WORKDIR /var/lib/fastlane
EXPOSE 10000
STOPSIGNAL SIGTERM
ENTRYPOINT ["fastlane"]
CMD ["api", "--host", "0.0.0.0"]
