//go:build unix

// Package redisacl holds a rotation of a Redis password; this test rotates it under clients of a
// real server.
package redisacl

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"secretagent/examples/internal/example"
)

func TestClientsLogInDuringRotations(t *testing.T) {
	server := example.Tool(t, "redis-server")
	example.Tool(t, "python3")
	dir, err := os.MkdirTemp("", "rd")
	example.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	var log example.Buffer
	cmd := exec.Command(server, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir, "--requirepass", "of-the-admin")
	cmd.Stdout = &log
	example.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the server ended with %v\n%s", err, log.String())
		}
	})
	example.Eventually(t, "the server", func() bool { return login(socket, "default", "of-the-admin") == nil })
	const first = "first-password"
	example.Must(t, call(socket, "AUTH default of-the-admin", "ACL SETUSER app on >"+first+" +ping"))

	a := example.Start(t, func(dir string) {
		example.Write(t, filepath.Join(dir, "admin.password"), "of-the-admin\n")
		text := example.Read(t, filepath.Join(dir, "agent.yaml"))
		example.Write(t, filepath.Join(dir, "agent.yaml"), strings.ReplaceAll(text, "/run/redis/redis-server.sock", socket))
	})
	a.Create(t, "app/redis", `{"username":"app","password":"`+first+`"}`)
	a.Ready(t)
	read := func() (u struct{ Username, Password string }) {
		example.Must(t, json.Unmarshal([]byte(example.Read(t, a.Path("var", "redis.json"))), &u))
		return u
	}

	var stop atomic.Bool
	var logins, failed atomic.Int64
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for !stop.Load() {
				u := read()
				if err := login(socket, u.Username, u.Password); err != nil {
					failed.Add(1)
					t.Errorf("a client could not log in: %v", err)
				}
				logins.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
	}
	const rotations = 4
	for range rotations {
		before := read()
		out, code := example.Output(t, a.Dir, nil, a.Bin, "secret", "rotate", "app/redis", "--config", "agent.yaml")
		if code != 0 {
			t.Fatalf("secretagent secret rotate: %s", out)
		}
		example.Eventually(t, "the new password in the file", func() bool { return read() != before })
		a.Secret(read().Password)
		if err := login(socket, "app", before.Password); err != nil {
			t.Errorf("a client with the password before: %v", err)
		}
	}
	if login(socket, "app", first) == nil {
		t.Error("the first password still works")
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d rotations, %d logins, %d failed", rotations, logins.Load(), failed.Load())
}

func login(socket, username, password string) error {
	return call(socket, "AUTH "+username+" "+password)
}

// call sends commands, whose words hold no spaces, and fails with the first answer that is not OK.
func call(socket string, commands ...string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer := make([]byte, 200)
	for _, command := range commands {
		words := strings.Split(command, " ")
		request := fmt.Sprintf("*%d\r\n", len(words))
		for _, w := range words {
			request += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
		}
		if _, err := conn.Write([]byte(request)); err != nil {
			return err
		}
		n, err := conn.Read(answer)
		if err != nil {
			return err
		}
		if text := string(answer[:n]); text != "+OK\r\n" {
			return fmt.Errorf("%s: %s", words[0], text)
		}
	}
	return nil
}
