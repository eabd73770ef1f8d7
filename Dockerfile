# A static binary in an empty image: no shell, no package manager, no root.
#
#   docker build -t secretagent .
#   docker run --read-only --cap-drop=ALL --security-opt no-new-privileges \
#     -v ./agent.yaml:/etc/secretagent/agent.yaml:ro -v secretagent:/var/lib/secretagent secretagent
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
    go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/secretagent .
# The folder that holds what the agent keeps; its owner and mode become the volume's.
RUN mkdir -p /out/var/lib/secretagent && chmod 0700 /out/var/lib/secretagent

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/secretagent /secretagent
COPY --from=build --chown=65532:65532 /out/var/lib/secretagent /var/lib/secretagent
USER 65532:65532
WORKDIR /var/lib/secretagent
VOLUME /var/lib/secretagent
ENTRYPOINT ["/secretagent"]
# Whether it answers, asked over loopback or the socket that the configuration names, without a
# token. Neither an outage upstream, as for "status --ready", nor a mistake in the configuration,
# which the agent refuses, makes it unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/secretagent", "status", "--live", "--config", "/etc/secretagent/agent.yaml"]
CMD ["run", "--config", "/etc/secretagent/agent.yaml"]
