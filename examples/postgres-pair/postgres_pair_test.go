//go:build unix

// Package postgrespair holds the files of a PostgreSQL client; this test rotates them under
// clients that connect to a real server.
package postgrespair

import (
	"encoding/json"
	"math/rand/v2"
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
	"time"

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
	rotations := 3
	if n, err := strconv.Atoi(os.Getenv("ROTATIONS")); err == nil {
		rotations = n // each some seconds, and some more where the agent is killed
	}
	psql := example.Tool(t, "psql", "/usr/lib/postgresql/*/bin/psql")
	server := startServer(t)
	admin := func(statement string) {
		t.Helper()
		out, code := example.Output(t, server, []string{"PGPASSWORD=admin"}, psql, "-X", "-h", server, "-U", "admin", "-d", "postgres", "-c", statement)
		if code != 0 {
			t.Fatalf("%s: %s", statement, out)
		}
	}
	const first = `first:\ä "w"`
	admin("create role rotator login createrole password 'of the rotator'")
	admin("create role app_a login password '" + first + "'")
	admin("create role app_b login")
	admin("grant app_a, app_b to rotator with admin option") // which PostgreSQL needs from 16 on

	a := example.Start(t, func(dir string) {
		example.Write(t, filepath.Join(dir, "rotator.pgpass"), "*:*:*:rotator:of the rotator\n")
		text := example.Read(t, filepath.Join(dir, "agent.yaml"))
		text = strings.ReplaceAll(text, "/run/postgresql", server)
		if rotations > 3 { // by the schedule, and not by hand
			text = strings.Replace(text, "every: 720h\n    window: {from: \"02:00\", to: \"04:00\"}", "every: 5s", 1)
			text = strings.ReplaceAll(text, "rotator.pgpass\"]", "rotator.pgpass\"]\n      timeout: 2s")
		}
		example.Write(t, filepath.Join(dir, "agent.yaml"), text)
	})
	put(t, a, a.Create, server, "app_a", first)
	a.Ready(t)
	env := []string{"PGSERVICEFILE=" + a.Path("var", "pg", "pg_service.conf"), "PGPASSFILE=" + a.Path("var", "pg", "pgpass")}
	connect := func() (string, int) {
		return example.Output(t, a.Dir, env, psql, "-X", "-w", "-At", "service=app", "-c", "select current_user")
	}

	var stop atomic.Bool
	var connections, failed atomic.Int64
	var longest [2]time.Duration
	var clients sync.WaitGroup
	for i := range longest {
		clients.Go(func() {
			for !stop.Load() {
				began := time.Now()
				if out, code := connect(); code != 0 {
					failed.Add(1)
					t.Errorf("a client could not connect: %s", out)
				}
				connections.Add(1)
				longest[i] = max(longest[i], time.Since(began))
			}
		})
	}
	current := func() string {
		return strings.TrimSpace(output(t, a, "secret", "get", "app/db", "--field", "username"))
	}
	kills := 0
	for n := range rotations {
		before := version(t, a)
		next := map[string]string{"app_a": "app_b", "app_b": "app_a"}[current()]
		if rotations > 3 {
			for version(t, a) == before {
				if rand.N(3) == 0 {
					time.Sleep(rand.N(7 * time.Second))
					a.Kill(t)
					kills++
				}
				time.Sleep(200 * time.Millisecond)
			}
		} else {
			if n == 1 {
				a.Kill(t) // what was published stays, and is the same after it
				kills++
			}
			output(t, a, "secret", "rotate", "app/db")
		}
		example.Eventually(t, "the next user", func() bool {
			out, _ := connect()
			return strings.TrimSpace(out) == next
		})
		// A connection that began with the user before must end before that user's password
		// changes, as it does where rotations are hours apart.
		seen := connections.Load()
		example.Eventually(t, "the connections under way", func() bool { return connections.Load() > seen+int64(len(longest)) || t.Failed() })
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d rotations, %d kills, %d logins, %d failed; the longest took %s", rotations, kills, connections.Load(), failed.Load(), max(longest[0], longest[1]))
}

// output returns what a command prints, which must succeed.
func output(t *testing.T, a *example.Agent, args ...string) string {
	t.Helper()
	out, code := example.Output(t, a.Dir, nil, append([]string{a.Bin}, append(args, "--config", "agent.yaml")...)...)
	if code != 0 {
		t.Fatalf("secretagent %v: %s", args, out)
	}
	return out
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

// version returns the id of the current version.
func version(t *testing.T, a *example.Agent) string {
	t.Helper()
	var value struct {
		VersionID string `json:"VersionId"`
	}
	example.Must(t, json.Unmarshal([]byte(output(t, a, "secret", "get", "app/db", "--output", "json")), &value))
	return value.VersionID
}
