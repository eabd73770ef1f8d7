//go:build unix

package agent_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
)

const keptInFolders = `
upstream: {local: {database: ./database/db, keyring: ./keyring/keyring.json, api: {socket: off}, seed: [{name: demo/db, data: x}]}}
cache: {sealed: {path: ./sealed/cache, keyring: ./sealed-keyring/keyring.json}}
endpoint: {listen: "127.0.0.1:0", tokenFile: ./token/token}
process: {noDump: false}
`

// TestRootOpensNothingInFoldersOfOthers: files that are there are looked at as those that are to be
// made. Nobody else is led by root.
func TestRootOpensNothingInFoldersOfOthers(t *testing.T) {
	needsOwners(t)
	dir := shortTempDir(t)
	w := start(t, dir, keptInFolders)
	w.eventually("the sealed cache is written", func() bool {
		_, err := os.Stat(w.path("sealed/cache"))
		return err == nil && w.statuses("demo/db", w.read("token/token"))[0] == 200
	})
	must(t, w.stop())
	for folder, key := range map[string]string{
		"database": "upstream.local.database", "keyring": "upstream.local.keyring", "sealed": "cache.sealed.path",
		"sealed-keyring": "cache.sealed.keyring", "token": "endpoint.tokenFile",
	} {
		for name, change := range map[string]func(path string) error{
			"of another user":   func(path string) error { return os.Chown(path, 65533, -1) },
			"open to all":       func(path string) error { return os.Chmod(path, 0o777) },
			"open to the group": func(path string) error { return os.Chmod(path, 0o770) },
		} {
			must(t, change(w.path(folder)))
			_, err := config.Load(w.path("agent.yaml"), agent.Check)
			if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), w.path(folder)+" belongs to uid") {
				t.Errorf("%s %s: %v", folder, name, err)
			}
			cfg, err := config.Load(w.path("agent.yaml"))
			must(t, err)
			if a, err := agent.New(t.Context(), cfg, agent.Deps{}); err == nil {
				t.Errorf("%s %s: the agent starts", folder, name)
				must(t, a.Close())
			}
			must(t, errors.Join(os.Chown(w.path(folder), 0, -1), os.Chmod(w.path(folder), 0o700)))
		}
	}
	_, err := config.Load(w.path("agent.yaml"), agent.Check)
	must(t, err)
}

// TestRootChecksForAnAgentOfAnotherUser: what belongs to that user is right, and root is warned of
// the token, which its own agent would refuse.
func TestRootChecksForAnAgentOfAnotherUser(t *testing.T) {
	needsOwners(t)
	w := start(t, shortTempDir(t), keptInFolders)
	must(t, w.stop())
	for _, folder := range []string{"database", "keyring", "sealed-keyring", "token"} {
		must(t, os.Chown(w.path(folder), 65533, 65533))
		files, err := os.ReadDir(w.path(folder))
		must(t, err)
		for _, f := range files {
			must(t, os.Chown(w.path(folder+"/"+f.Name()), 65533, 65533))
		}
	}
	cfg, err := config.Load(w.path("agent.yaml"), agent.Check)
	must(t, err)
	if _, err := config.Load(w.path("agent.yaml"), agent.Warnings); err == nil || !strings.Contains(err.Error(), "endpoint.tokenFile") || !strings.Contains(err.Error(), "belongs to uid 65533") {
		t.Errorf("no warning: %v", err)
	}
	if a, err := agent.New(t.Context(), cfg, agent.Deps{}); err == nil || !strings.Contains(err.Error(), "belongs to uid 65533") {
		t.Errorf("root's agent starts with the token of another user: %v", err)
		_ = a.Close()
	}
}
