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

// TestRootChecksWhereTheStateIsOfAnotherUser: folders of the user that the agent runs as are none of
// the configuration's problems, whatever root's own agent would say of them.
func TestRootChecksWhereTheStateIsOfAnotherUser(t *testing.T) {
	needsOwners(t)
	dir := shortTempDir(t)
	write(t, dir, map[string]string{"agent.yaml": `
upstream: {local: {}}
cache: {sealed: {}}
endpoint: {listen: "off", socket: ./run/agent.sock}
templates: [{contents: x, destination: ./run/out, hook: {command: [sh]}}]
`})
	source := config.Source{File: dir + "/agent.yaml", StateDir: dir + "/state"}
	must(t, errors.Join(os.Mkdir(dir+"/state", 0o700), os.Mkdir(dir+"/run", 0o700), os.Chown(dir+"/run", 65533, 65533)))
	for _, c := range []struct {
		owner int
		runs  bool // the agent, as the owner of its state
	}{{0, false}, {65533, true}} {
		must(t, os.Chown(dir+"/state", c.owner, c.owner))
		if _, err := source.Load(agent.CheckForUser); (err == nil) != c.runs {
			t.Errorf("state of uid %d: %v", c.owner, err)
		}
		if cfg, err := source.Load(); err != nil || agent.OtherUser(cfg) != c.owner {
			t.Errorf("state of uid %d: checked for uid %d, %v", c.owner, agent.OtherUser(cfg), err)
		}
		if _, err := source.Load(agent.Check); err == nil || !strings.Contains(err.Error(), "endpoint.socket") || !strings.Contains(err.Error(), "templates[0].destination") {
			t.Errorf("state of uid %d: root's agent: %v", c.owner, err)
		}
	}
	// Other mistakes are told as ever.
	write(t, dir, map[string]string{"agent.yaml": "upstream: {local: {}}\ntemplates: [{source: ./missing, destination: ./run/out}]\n"})
	if _, err := source.Load(agent.CheckForUser); err == nil || !strings.Contains(err.Error(), "templates[0].source") || strings.Contains(err.Error(), "destination") {
		t.Errorf("a mistake: %v", err)
	}
}
