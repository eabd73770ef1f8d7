package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func noProgress(int, int) {}

// on opens the upstream of a configuration, as a command does.
func on(t *testing.T, cfg *config.Config) upstream.Manager {
	t.Helper()
	m, closeManager, err := agent.OpenManager(t.Context(), cfg, slog.New(slog.DiscardHandler), agent.MissingFiles)
	must(t, err)
	t.Cleanup(func() { must(t, closeManager()) })
	return m
}

// What is on etcd is saved, put back where nothing is, also by a second call after one that was interrupted, and in place of
// what is there on request alone. Then it goes into a database.
func TestBackupOfEtcd(t *testing.T) {
	e := upstreamtest.NewEtcd(t, nil)
	dir := t.TempDir()
	load := func(name, text string) *config.Config {
		t.Helper()
		write(t, dir, map[string]string{name: text})
		cfg, err := config.Source{File: filepath.Join(dir, name)}.Load()
		must(t, err)
		return cfg
	}
	etcdAt := func(prefix string) string {
		return fmt.Sprintf("upstream: {etcd: {endpoints: ['%s'], prefix: %s, keyring: keyring.json, maxVersions: 100, timeout: 30s, api: {socket: off}}}", e.URL, prefix)
	}
	_, err := agent.CreateKeyring(filepath.Join(dir, "keyring.json"))
	must(t, err)
	from, to := load("from.yaml", etcdAt("/from/")), load("to.yaml", etcdAt("/to/"))
	const secrets = 300
	source := on(t, from)
	for i := range secrets {
		name := upstream.SecretName(fmt.Sprintf("s%03d", i))
		_, err := source.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: upstream.NewSecretData([]byte(marker))})
		must(t, err)
	}
	_, err = source.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "s007"})
	must(t, err)
	log := slog.New(slog.DiscardHandler)
	file := filepath.Join(dir, "backup.db")
	made, err := agent.BackUp(t.Context(), from, log, file, false, noProgress)
	if err != nil || made.Secrets != secrets {
		t.Fatalf("got %+v, %v", made, err)
	}
	content, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(content), marker) || int64(len(content)) != made.Bytes {
		t.Errorf("the backup has %d bytes, or a value in the clear: %v", len(content), err)
	}

	// It is interrupted after some secrets, twice.
	target := on(t, to)
	restore := func(ctx context.Context, replace bool, progress agent.Progress) (agent.Restored, error) {
		return agent.Restore(ctx, to, log, file, agent.RestoreOptions{Replace: replace, Progress: progress})
	}
	for range 2 {
		ctx, stop := context.WithCancel(t.Context())
		var written atomic.Int64
		_, err := restore(ctx, false, func(_, total int) {
			if total != 3*secrets { // it is checked
				return
			}
			if written.Add(1) > secrets+50 {
				stop()
			}
		})
		stop()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if restored, err := restore(t.Context(), false, noProgress); err != nil || restored.Secrets != secrets || restored.Written == 0 || restored.Written == secrets {
		t.Errorf("the last of three has done %+v, %v", restored, err)
	}
	want, err := source.DescribeSecret(t.Context(), "s007", true)
	must(t, err)
	if got, err := target.DescribeSecret(t.Context(), "s007", true); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}

	// Others are there now.
	_, err = target.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: "extra", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x"))})
	must(t, err)
	_, err = target.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "s001", VersionID: "v2", SecretData: upstream.NewSecretData([]byte("x"))})
	must(t, err)
	if _, err = restore(t.Context(), false, noProgress); !errors.Is(err, upstream.ErrExists) {
		t.Errorf("got %v", err)
	}
	if restored, err := restore(t.Context(), true, noProgress); err != nil || restored.Written != 1 || restored.Removed != 1 {
		t.Errorf("got %+v, %v", restored, err)
	}

	// An agent can be pointed at the file; and a database is a target like another.
	local := load("local.yaml", "upstream: {local: {database: data/secrets.db, keyring: keyring.json, api: {socket: off}}}")
	if restored, err := agent.Restore(t.Context(), local, log, file, agent.RestoreOptions{Progress: noProgress}); err != nil || restored.Secrets != secrets {
		t.Errorf("got %+v, %v", restored, err)
	}
	moved, err := agent.Copy(t.Context(), to, local, log, agent.CopyOptions{Progress: noProgress})
	must(t, err)
	for _, one := range moved {
		if one.Result != agent.MoveUnchanged {
			t.Errorf("%s %s: it was restored from the same", one.SecretName, one.Result)
		}
	}
	if len(moved) != secrets {
		t.Errorf("compared %d", len(moved))
	}
}
