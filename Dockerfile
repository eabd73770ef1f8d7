# A static binary in an empty image: no shell, no package manager, no root. From an empty folder:
#
#   mkdir conf && echo 'upstream: {local: {}}' > conf/agent.yaml
#   docker run -d --name agent --read-only --cap-drop=ALL --security-opt no-new-privileges \
#     -v "$PWD/conf:/etc/secretagent:ro" -v secretagent:/var/lib/secretagent secretagent:dev
#   docker exec agent /secretagent status
#
# The folder of the configuration is mounted, not the file: a file that an editor replaces stays the
# old one in the container, and docker makes a folder in place of one that is missing.
#
# docker build -t secretagent:dev . makes it, with BuildKit or without, and podman build
# --format docker. For another architecture: --platform linux/arm64 (BuildKit; with podman 4 and
# Buildah also --build-arg BUILDPLATFORM=linux/amd64, this machine's). An image in the format of OCI
# has no place for the health check; podman run --health-cmd says it:
#
#   podman run --health-cmd '["/secretagent","status","--live"]' ...

# Where the compiler runs. BuildKit says it and keeps what it has said; the classic builder does not,
# and means this machine's own architecture.
ARG BUILDPLATFORM=${BUILDPLATFORM:-linux}
# The digest is that of the index of golang:1.26-alpine with Go 1.26.8, for all platforms: no later
# image of that name takes its place. For another: --build-arg GO_VERSION=1.26-alpine@sha256:...
ARG GO_VERSION=1.26-alpine@sha256:b6890e35ded5d19118c2bca3d7754dc4e6f694aac2d0aeb92f9807c2879e4230
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
ARG GOPROXY
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download && go mod verify
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -tags timetzdata -ldflags "-s -w -X main.version=${VERSION}" -o /image/secretagent .
# What belongs to root, and the state directory, whose owner and mode become those of the volume.
RUN mkdir -p /image/etc/ssl/certs /image/var/lib /state/secretagent && chmod 0700 /state/secretagent && \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
ARG VERSION=dev REVISION
LABEL org.opencontainers.image.title="secretagent" \
      org.opencontainers.image.description="A sidecar that keeps the secrets of an application current" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/ /
COPY --from=build --chown=65532:65532 /state/ /var/lib/
# Both are for every command, also of docker exec: wherever the configuration is mounted, what it
# does not place lies in the volume.
ENV SECRETAGENT_CONFIG=/etc/secretagent/agent.yaml STATE_DIRECTORY=/var/lib/secretagent
USER 65532:65532
WORKDIR /var/lib/secretagent
VOLUME /var/lib/secretagent
ENTRYPOINT ["/secretagent"]
# Whether it answers, asked over loopback or the socket that the configuration names, without a
# token. Neither an outage upstream, as for "status --ready", nor a mistake in the configuration,
# which the agent refuses, makes it unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/secretagent", "status", "--live"]
CMD ["run"]
