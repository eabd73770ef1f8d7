//go:build unix

// Package postgrespair holds the files of a PostgreSQL client; this test rotates them under
// clients that connect to a real server.
package postgrespair

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"secretagent/examples/internal/example"
)

func TestFiles(t *testing.T) {
	a := example.Start(t)
	put(t, a, a.Create, "/run/db", "app_a", `p:a\ss`)
	a.Ready(t)
	wantFile(t, a, "pg_service.conf", "[app]\nhost=/run/db\nport=5432\ndbname=postgres\nuser=app_a\n")
	wantFile(t, a, "pgpass", `*:*:*:app_a:p\:a\\ss`+"\n")
	put(t, a, a.Put, "/run/db", "app_b", "second-one")
	example.Eventually(t, "the second user", func() bool {
		return strings.Contains(example.Read(t, a.Path("var", "pg", "pg_service.conf")), "user=app_b")
	})
	wantFile(t, a, "pgpass", "*:*:*:app_b:second-one\n"+`*:*:*:app_a:p\:a\\ss`+"\n")
}

func TestClientsConnectDuringRotations(t *testing.T) {
	psql := example.Tool(t, "psql", "/usr/lib/postgresql/*/bin/psql")
	server := startServer(t)
	admin := func(statement string) {
		t.Helper()
		out, code := example.Output(t, server, []string{"PGPASSWORD=admin"}, psql, "-X", "-h", server, "-U", "admin", "-d", "postgres", "-c", statement)
		if code != 0 {
			t.Fatalf("%s: %s", statement, out)
		}
	}
	users := []string{"app_a", "app_b"}
	password := func(n int) string { return fmt.Sprintf(`p:%d\ä "w"`, n) }
	for _, u := range users {
		admin("create role " + u + " login")
	}
	admin(fmt.Sprintf("alter role app_a password '%s'", password(0)))

	a := example.Start(t)
	put(t, a, a.Create, server, "app_a", password(0))
	a.Ready(t)
	env := []string{"PGSERVICEFILE=" + a.Path("var", "pg", "pg_service.conf"), "PGPASSFILE=" + a.Path("var", "pg", "pgpass")}
	connect := func() (string, int) {
		return example.Output(t, a.Dir, env, psql, "-X", "-w", "-At", "service=app", "-c", "select current_user")
	}

	var stop atomic.Bool
	var connections [2]atomic.Int64 // of each client
	var clients sync.WaitGroup
	for i := range connections {
		clients.Go(func() {
			for !stop.Load() {
				if out, code := connect(); code != 0 {
					t.Errorf("a client could not connect: %s", out)
					return
				}
				connections[i].Add(1)
			}
		})
	}
	for n := 1; n <= 4; n++ {
		next := users[n%2]
		admin(fmt.Sprintf("alter role %s password '%s'", next, password(n)))
		put(t, a, a.Put, server, next, password(n))
		example.Eventually(t, "the next user", func() bool {
			out, _ := connect()
			return strings.TrimSpace(out) == next
		})
		// A connection that began with the user before must end before that user's password
		// changes, as it does where rotations are hours apart.
		for i := range connections {
			before := connections[i].Load()
			example.Eventually(t, "the connections under way", func() bool { return connections[i].Load() > before || t.Failed() })
		}
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d and %d connections during 4 rotations", connections[0].Load(), connections[1].Load())
}

// startServer runs a server on a unix socket in the folder that it returns, until the test
// ends. Its superuser is admin with the same password. PostgreSQL refuses to run as root:
// root starts it as postgres or nobody.
func startServer(t *testing.T) string {
	t.Helper()
	initdb := example.Tool(t, "initdb", "/usr/lib/postgresql/*/bin/initdb")
	postgres := example.Tool(t, "postgres", "/usr/lib/postgresql/*/bin/postgres")
	dir, err := os.MkdirTemp("", "pg")
	example.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	pwfile := filepath.Join(dir, "pw")
	example.Write(t, pwfile, "admin\n")
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		account, err := user.Lookup("postgres")
		if err != nil {
			if account, err = user.Lookup("nobody"); err != nil {
				t.Skip("root needs an account postgres or nobody to run the server as")
			}
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		for _, path := range []string{dir, pwfile} {
			example.Must(t, os.Chown(path, uid, gid))
		}
	}
	data := filepath.Join(dir, "data")
	create := exec.Command(initdb, "-D", data, "-U", "admin", "-A", "scram-sha-256", "--pwfile", pwfile, "-E", "UTF8", "--locale", "C", "-N")
	create.Dir, create.SysProcAttr = dir, attr
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	var log example.Buffer
	cmd := exec.Command(postgres, "-D", data, "-k", dir, "-F", "-c", "listen_addresses=", "-c", "port=5432")
	cmd.Dir, cmd.SysProcAttr, cmd.Stderr = dir, attr, &log
	example.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the server ended with %v\n%s", err, log.String())
		}
	})
	example.Eventually(t, "the server", func() bool { return strings.Contains(log.String(), "ready to accept connections") })
	return dir
}

func put(t *testing.T, a *example.Agent, store func(*testing.T, string, string), host, username, password string) {
	t.Helper()
	value, err := json.Marshal(map[string]any{"host": host, "port": 5432, "dbname": "postgres", "username": username, "password": password})
	example.Must(t, err)
	a.Secret(password)
	store(t, "app/db", string(value))
}

func wantFile(t *testing.T, a *example.Agent, name, want string) {
	t.Helper()
	if got := example.Read(t, a.Path("var", "pg", name)); got != want {
		t.Errorf("%s is\n%snot\n%s", name, got, want)
	}
}
