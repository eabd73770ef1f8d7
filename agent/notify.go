package agent

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"

	"secretagent/agent/endpoint"
)

// States of the service, as systemd is told them. Without systemd they go nowhere.
const (
	notifyReady    = daemon.SdNotifyReady
	notifyStopping = daemon.SdNotifyStopping
)

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "err", err, "hint", "set NotifyAccess=main in the unit")
	}
}

const (
	notifyEvery = 250 * time.Millisecond // how often systemd may be told another state
	maxState    = 400                    // bytes of it
)

// tellState tells systemd when the service is ready, which readyWhen defines, and what is missing,
// until ctx ends. Without systemd it does nothing.
func (a *Agent) tellState(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	ticker := time.NewTicker(notifyEvery)
	defer ticker.Stop()
	told := ""
	for {
		cfg, now := a.config(), a.readiness()
		var lines []string
		if (cfg.ReadyWhen == "serving" || now.Ready) && !a.notified.Swap(true) {
			lines = append(lines, notifyReady)
		}
		if state := stateLine(now, len(cfg.Endpoint.Callers) > 0); state != told {
			told = state
			lines = append(lines, "STATUS="+state)
		}
		if len(lines) > 0 {
			notify(a.log, strings.Join(lines, "\n"))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// stateLine says on one line what is missing. Everybody on the host can read it: it quotes no
// output of a program, and with discreet it names nothing.
func stateLine(r endpoint.Readiness, discreet bool) string {
	line := "ready"
	if !r.Ready {
		line = "not ready"
	}
	if discreet && len(r.Problems) > 0 {
		return line + "; secretagent status says what is wrong"
	}
	for _, p := range r.Problems {
		if p.Printed {
			p.Reason = "secretagent status says why"
		}
		line += "; " + p.Subject + ": " + p.Reason
	}
	line = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) { // a new line would tell systemd something else
			return ' '
		}
		return c
	}, line)
	if len(line) > maxState {
		line = strings.ToValidUTF8(line[:maxState], "") + "…"
	}
	return line
}

// watchdog tells systemd, twice in each interval that the service asks for, that the agent is
// alive, until ctx ends. Alive means that the cache answers: a deadlock in it would stop every
// lookup. Without WatchdogSec in the unit it does nothing.
func (a *Agent) watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		a.log.Warn("the watchdog of systemd is misconfigured", "err", err, "hint", "check WatchdogSec in the unit")
	}
	if interval == 0 {
		return nil
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		a.cache.Missing()
		notify(a.log, daemon.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
