package agent

import (
	"fmt"
	"log/slog"
	"maps"
	"os"

	"secretagent/agent/child"
	"secretagent/agent/config"
)

// childOptions turns the configuration into that of the supervised process.
func childOptions(cfg *config.Exec, log *slog.Logger) (child.Options, error) {
	stop, err := child.ParseSignal(cfg.StopSignal)
	if err != nil {
		return child.Options{}, fmt.Errorf("exec.stopSignal: %w", err)
	}
	var change os.Signal // used on a change only; not every operating system has it
	if child.OnChange(cfg.OnChange) == child.SignalChild {
		if change, err = child.ParseSignal(cfg.ChangeSignal); err != nil {
			return child.Options{}, fmt.Errorf("exec.changeSignal: %w", err)
		}
	}
	opts := child.Options{
		Command:       cfg.Command,
		Dir:           string(cfg.Dir),
		Pristine:      cfg.Pristine,
		Allow:         cfg.Allow,
		Deny:          cfg.Deny,
		OnChange:      child.OnChange(cfg.OnChange),
		ChangeSignal:  change,
		StopSignal:    stop,
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
		if v.Name != "" {
			opts.Env = append(opts.Env, child.Variable{Name: v.Name, Ref: v.Secret, Field: v.Field})
			continue
		}
		opts.EnvFrom = append(opts.EnvFrom, child.Spread{
			Ref: v.Secret, Prefix: v.Prefix, Case: child.Case(v.Case), Sanitize: v.Sanitize, Keys: maps.Clone(v.Keys),
		})
	}
	return opts, nil
}
