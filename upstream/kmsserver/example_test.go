package kmsserver_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// A backend is served on a private socket; any HTTP client reaches it there.
func Example() {
	backend := upstreamtest.NewFake() // or any other upstream.Manager
	_, err := backend.CreateSecret(context.Background(), upstream.CreateSecretInput{
		SecretName: "app/db", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("hello")),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	server, err := kmsserver.New(backend, kmsserver.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	folder, err := os.MkdirTemp("", "kms")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(folder)
	socket := filepath.Join(folder, "kms.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln, kmsserver.Trusted) }()

	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) },
	}}
	res, err := client.Get("http://kms.local/?Action=GetSecretValue&Version=2016-01-20&SecretName=app/none")
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	fmt.Println(res.Status)

	fmt.Println(server.Shutdown(context.Background()), <-served)
	// Output:
	// 404 Not Found
	// <nil> <nil>
}
