// Package nginxtls holds a certificate for nginx; this test rotates it under a running nginx.
package nginxtls

import (
	"crypto/tls"
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

func TestNginxServesTheNewCertificate(t *testing.T) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx = "/usr/sbin/nginx" // not in everybody's PATH
	}
	t.Setenv("PATH", filepath.Dir(nginx)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	a := example.Start(t, func(dir string) {
		replace(t, filepath.Join(dir, "nginx.conf"), "127.0.0.1:8443", "unix:"+filepath.Join(dir, "var", "nginx.sock"))
		if _, err := os.Stat(nginx); err != nil { // all but what needs it
			replace(t, filepath.Join(dir, "agent.yaml"), "    check:", "    #")
		}
	})
	a.Create(t, "web/tls", pair(t, a, 1))
	example.Eventually(t, "the first pair", func() bool { return onDisk(a) == 1 })
	a.Put(t, "web/tls", pair(t, a, 2))
	example.Eventually(t, "the second pair", func() bool { return onDisk(a) == 2 })

	t.Run("nginx", func(t *testing.T) {
		nginx := example.Tool(t, nginx)
		socket := a.Path("var", "nginx.sock")
		startNginx(t, a, nginx)
		example.Eventually(t, "nginx to serve", func() bool { n, err := served(socket); return err == nil && n == 2 })

		// Connections all the time: none may fail. Which certificate they see is nginx's
		// choice while its old workers and the new ones both accept.
		var stop atomic.Bool
		var asked atomic.Int64
		var clients sync.WaitGroup
		for range 2 {
			clients.Go(func() {
				for !stop.Load() {
					if _, err := served(socket); err != nil {
						t.Errorf("a connection failed: %v", err)
						return
					}
					asked.Add(1)
				}
			})
		}
		for serial := int64(3); serial <= 7; serial++ {
			a.Put(t, "web/tls", pair(t, a, serial))
			example.Eventually(t, fmt.Sprintf("certificate %d", serial), func() bool {
				n, err := served(socket)
				return err == nil && n == serial
			})
		}
		stop.Store(true)
		clients.Wait()
		a.Ready(t) // files and hook

		// A pair that does not fit stays out, and nginx serves on; also when it starts anew.
		cert, _ := example.Certificate(t, 8)
		_, key := example.Certificate(t, 8)
		a.Put(t, "web/tls", secret(t, a, cert, key))
		example.Eventually(t, "the check to fail", func() bool {
			out, code := example.Output(t, a.Dir, nil, a.Bin, "status", "--config", "agent.yaml")
			return code == 1 && strings.Contains(strings.Join(strings.Fields(out), " "), "check: command nginx: exit status 1: ")
		})
		if n := onDisk(a); n != 7 {
			t.Errorf("certificate %d is on disk, want 7", n)
		}
		example.Eventually(t, "the last of the right pairs", func() bool { n, err := served(socket); return err == nil && n == 7 })
		a.Put(t, "web/tls", pair(t, a, 9))
		example.Eventually(t, "the right pair", func() bool { n, err := served(socket); return err == nil && n == 9 })
		a.Ready(t)
		if asked.Load() == 0 {
			t.Error("no connection was made meanwhile")
		}
		t.Logf("%d connections during 5 rotations", asked.Load())
	})
}

// replace changes a file, in which old must stand.
func replace(t *testing.T, path, old, new string) {
	t.Helper()
	text := example.Read(t, path)
	if !strings.Contains(text, old) {
		t.Fatalf("%s has no %q to replace", path, old)
	}
	example.Write(t, path, strings.Replace(text, old, new, 1))
}

// startNginx runs nginx until the test ends.
func startNginx(t *testing.T, a *example.Agent, nginx string) {
	t.Helper()
	var log example.Buffer
	cmd := exec.Command(nginx, "-p", a.Dir, "-c", "var/tls/nginx.conf", "-e", "stderr", "-g", "daemon off;")
	cmd.Dir, cmd.Stderr = a.Dir, &log
	example.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("nginx ended with %v\n%s", err, log.String())
		}
	})
}

// served returns the serial number of the certificate that a new connection is shown.
func served(socket string) (int64, error) {
	conn, err := net.DialTimeout("unix", socket, example.Patience)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(example.Patience)); err != nil {
		return 0, err
	}
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // only the number counts
	if err := client.Handshake(); err != nil {
		return 0, err
	}
	return client.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
}

// onDisk returns the serial number of the published certificate, 0 when certificate and key
// are missing or do not fit.
func onDisk(a *example.Agent) int64 {
	loaded, err := tls.LoadX509KeyPair(a.Path("var", "tls", "tls.crt"), a.Path("var", "tls", "tls.key"))
	if err != nil {
		return 0
	}
	return loaded.Leaf.SerialNumber.Int64()
}

// pair returns a new certificate and key as the value of the secret.
func pair(t *testing.T, a *example.Agent, serial int64) string {
	t.Helper()
	cert, key := example.Certificate(t, serial)
	return secret(t, a, cert, key)
}

// secret returns a certificate and a key as the value of the secret.
func secret(t *testing.T, a *example.Agent, cert, key string) string {
	t.Helper()
	a.Secret(strings.Split(key, "\n")[1])
	value, err := json.Marshal(map[string]string{"certificate": cert, "privateKey": key})
	example.Must(t, err)
	return string(value)
}
