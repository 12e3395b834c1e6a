# The image of bench/: the demo targets and the receiver of docker-compose.yml.
#
#   docker build -f deploy/bench.Dockerfile -t millrace/bench:0.1.0 .                            # needs no Go
#   docker build -f deploy/bench.Dockerfile -t millrace/bench:0.1.0 --target prebuilt DIRECTORY  # with bench in it

FROM scratch AS bench-base
USER 65532:65532
EXPOSE 9475 9476
ENTRYPOINT ["/bench"]
CMD ["targets", "--listen=:9475"]

FROM bench-base AS prebuilt
COPY bench /bench

FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/bench ./bench

FROM bench-base AS bench
COPY --from=build /out/bench /bench
