package agent

import (
	"log/slog"
	"os"
	"slices"

	"secretagent/agent/child"
	"secretagent/agent/config"
	"secretagent/upstream/kms"
)

// withheld returns the variables of this process that the application does not inherit unless it is
// allowed to by name: those that hold its credentials, or the token that opens every secret, or say
// where these are. A variable of another token may be the application's own.
func withheld(cfg *config.Endpoint) []string {
	names := append(slices.Clip(kms.CredentialVariables), credentialsDirectory)
	if cfg.TokenVariable() == "" {
		return names
	}
	token := os.Getenv(cfg.TokenVariable())
	for _, name := range config.TokenVariables {
		if os.Getenv(name) == token {
			names = append(names, name)
		}
	}
	return names
}

// childOptions turns the configuration into that of the supervised process. Without a section exec
// that is what any has.
func childOptions(whole *config.Config, log *slog.Logger) child.Options {
	cfg := whole.Exec
	if cfg == nil {
		return child.Options{Withheld: withheld(&whole.Endpoint), Logger: log.With("part", "exec")}
	}
	opts := child.Options{
		Command:       cfg.Command,
		Dir:           string(cfg.Dir),
		User:          string(cfg.User),
		Group:         string(cfg.Group),
		Pristine:      cfg.Pristine,
		Allow:         cfg.Allow,
		Deny:          cfg.Deny,
		Withheld:      withheld(&whole.Endpoint),
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
