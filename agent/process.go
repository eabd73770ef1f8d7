package agent

import (
	"log/slog"
	"slices"

	"secretagent/agent/child"
	"secretagent/agent/config"
	"secretagent/upstream/kms"
)

// withheld returns the variables of this process that the application does not inherit unless it is
// allowed to by name: those that hold its credentials, or say where they are.
func withheld() []string {
	return append(slices.Clip(kms.CredentialVariables), credentialsDirectory)
}

// childOptions turns the configuration into that of the supervised process.
func childOptions(cfg *config.Exec, log *slog.Logger) child.Options {
	opts := child.Options{
		Command:       cfg.Command,
		Dir:           string(cfg.Dir),
		User:          string(cfg.User),
		Group:         string(cfg.Group),
		Pristine:      cfg.Pristine,
		Allow:         cfg.Allow,
		Deny:          cfg.Deny,
		Withheld:      withheld(),
		OnChange:      child.OnChange(cfg.OnChange),
		ChangeSignal:  cfg.ChangeSignal,
		StopSignal:    cfg.StopSignal,
		Grace:         cfg.Grace,
		SignalGroup:   cfg.SignalGroup,
		Debounce:      cfg.Debounce,
		Splay:         cfg.Splay,
		MaxRestarts:   cfg.MaxRestarts,
		RestartWindow: cfg.RestartWindow,
		StartTimeout:  cfg.StartTimeout,
		Subreaper:     cfg.Subreaper,
		Logger:        log.With("part", "exec"),
	}
	for _, v := range cfg.Env {
		opts.Env = append(opts.Env, child.Variable{
			Name: v.Name, Ref: v.Secret, Field: v.Field,
			Keys: v.Keys, Prefix: v.Prefix, Case: child.Case(v.Case), Sanitize: v.Sanitize,
		})
	}
	return opts
}
