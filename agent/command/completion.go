package command

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

// completeWithin bounds what a shell waits for. Completion that fails says nothing: the user is in the middle of a
// line. It never asks for a value, and asks the cloud for nothing.
const completeWithin = 700 * time.Millisecond

type completer = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// complete makes a completer of what lists the words that may stand in a place.
func (a *app) complete(list func(ctx context.Context, args []string, word string) []string) completer {
	return func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
		defer cancel()
		var words []string
		for _, w := range list(ctx, args, word) {
			if strings.HasPrefix(w, word) && !slices.Contains(words, w) {
				words = append(words, w)
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags adds completion to the flags of the verbs below cmd that name a version or a caller, and to
// their arguments that name a secret.
func (a *app) completeFlags(cmd *cobra.Command) {
	for _, verb := range cmd.Commands() {
		a.completeFlags(verb)
		for name, list := range map[string]completer{
			"version-id": a.complete(a.versionIDs), "to": a.complete(a.versionIDs), "from": a.complete(a.versionIDs),
			"stage": a.complete(a.labels), "caller": a.complete(a.callerNames),
		} {
			if f := verb.Flags().Lookup(name); f != nil && f.Value.Type() != "word" {
				_ = verb.RegisterFlagCompletionFunc(name, list)
			}
		}
		_, arguments, _ := strings.Cut(verb.Use, " ")
		if verb.ValidArgsFunction == nil && strings.HasPrefix(arguments, "NAME") {
			verb.ValidArgsFunction = a.complete(a.arguments(arguments))
		}
	}
}

// arguments lists the words for the arguments of a verb: a secret and then, as its usage says, labels or versions.
func (a *app) arguments(usage string) func(context.Context, []string, string) []string {
	return func(ctx context.Context, args []string, word string) []string {
		name, _, labelled := strings.Cut(word, ":")
		switch {
		case len(args) == 0 && labelled && strings.Contains(usage, "[:Label]"):
			var words []string
			for _, label := range a.labels(ctx, []string{name}, "") {
				words = append(words, name+":"+label)
			}
			return words
		case len(args) == 0:
			return a.secretNames(ctx)
		case len(args) == 1 && strings.Contains(usage, "LABEL"):
			return a.labels(ctx, args, word)
		case len(args) < 3 && strings.Contains(usage, "FROM"):
			return append(a.labels(ctx, args, word), a.versionIDs(ctx, args, word)...)
		}
		return nil
	}
}

// secretNames returns the names that the running agent, or the built-in backend behind it, knows.
func (a *app) secretNames(ctx context.Context) (names []string) {
	a.quietly(ctx, func(m upstream.Manager) {
		answer, err := m.ListSecrets(ctx, upstream.ListSecretsInput{Page: upstream.Page{Number: 1, Size: pageSize}})
		for _, s := range answer.Secrets {
			if err == nil {
				names = append(names, string(s.SecretName))
			}
		}
	})
	for _, s := range a.running(ctx).Secrets {
		if s.Held || s.Declared {
			names = append(names, string(s.SecretName))
		}
	}
	slices.Sort(names)
	return names
}

// filePaths returns what the running agent renders.
func (a *app) filePaths(ctx context.Context, _ []string, _ string) (paths []string) {
	for _, f := range a.running(ctx).Files {
		paths = append(paths, f.Path)
	}
	return paths
}

// running returns the status of the running agent; an empty one where it cannot be had.
func (a *app) running(ctx context.Context) (status agent.Status) {
	body, err := a.askOperator(ctx, reachFlags{}, http.MethodGet, "/status")
	if err != nil {
		if c, _, failed := a.client(reachFlags{}); failed == nil {
			body, err = c.call(ctx, http.MethodGet, "/status", nil)
		}
	}
	if err != nil || json.Unmarshal(body, &status) != nil {
		return agent.Status{}
	}
	return status
}

// versions returns those of the secret that args begin with, from the built-in backend.
func (a *app) versions(ctx context.Context, args []string) (versions []upstream.SecretVersion) {
	if len(args) == 0 {
		return nil
	}
	ref, err := upstream.ParseSecretRef(args[0])
	if err != nil {
		return nil
	}
	a.quietly(ctx, func(m upstream.Manager) { versions, _ = allVersions(ctx, m, ref.SecretName) })
	return versions
}

func (a *app) versionIDs(ctx context.Context, args []string, _ string) (ids []string) {
	for _, v := range a.versions(ctx, args) {
		ids = append(ids, string(v.VersionID))
	}
	return ids
}

func (a *app) labels(ctx context.Context, args []string, _ string) (labels []string) {
	for _, v := range a.versions(ctx, args) {
		for _, stage := range v.VersionStages {
			labels = append(labels, string(stage))
		}
	}
	return labels
}

func (a *app) callerNames(context.Context, []string, string) (names []string) {
	path, _ := config.Find(a.configFlag, a.Getenv, ".")
	for _, c := range (config.Source{File: path, StateDir: a.stateDir}).ReadReach().Callers {
		names = append(names, c.Name)
	}
	return names
}

// quietly calls fn with the built-in backend, where that is the upstream and can be opened.
func (a *app) quietly(ctx context.Context, fn func(upstream.Manager)) {
	cfg, err := a.loadConfig()
	if err != nil || cfg.Upstream.Local == nil && cfg.Upstream.Etcd == nil {
		return
	}
	m, closeManager, err := agent.OpenManager(ctx, cfg, slog.New(slog.DiscardHandler), agent.ExistingFiles)
	if err != nil {
		return
	}
	fn(m)
	_ = closeManager()
}
