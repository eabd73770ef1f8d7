package kmsserver_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// A backend is served on a private socket; any HTTP client reaches it there.
func Example() {
	backend := upstreamtest.NewFake() // or any other upstream.Manager
	server, err := kmsserver.New(backend, kmsserver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "kms")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	socket := filepath.Join(folder, "kms.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln, kmsserver.Trusted) }()

	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) },
	}}
	res, err := client.Get("http://kms.local/?Action=GetSecretValue&Version=2016-01-20&SecretName=app/none")
	if err != nil {
		log.Fatal(err)
	}
	_ = res.Body.Close()
	fmt.Println(res.Status)

	fmt.Println(server.Shutdown(context.Background()), <-served)
	// Output:
	// 404 Not Found
	// <nil> <nil>
}
