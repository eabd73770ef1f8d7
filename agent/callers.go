package agent

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kmsserver"
)

// loadCallers returns who may ask the endpoint after previous: the configured callers or, without
// any, every holder of the agent's token.
//
// A configured caller whose token file is of no use is shut out: often its application can write
// that file, and must not keep the others from starting, or their rights from being narrowed. Without callers there are no others, and the error, which is
// [upstream.OptionErrors] below the section endpoint, says what is wrong.
func loadCallers(cfg *config.Endpoint, previous []endpoint.Caller, log *slog.Logger, load loadFile) ([]endpoint.Caller, error) {
	var p upstream.OptionErrors
	var callers []endpoint.Caller
	if len(cfg.Callers) == 0 {
		caller := endpoint.DefaultCaller()
		p.Add("tokenFile", giveToken(&caller, string(cfg.TokenFile), log, load))
		callers = append(callers, caller)
	}
	for _, c := range cfg.Callers {
		caller := endpoint.Caller{Name: c.Name, UIDs: ids(c.UIDs), GIDs: ids(c.GIDs), Secrets: c.Secrets, Status: c.Status, Metrics: c.Metrics}
		if c.TokenFile != "" {
			_ = giveToken(&caller, string(c.TokenFile), log, load)
		}
		callers = append(callers, caller)
	}
	return endpoint.WithOverlap(previous, callers, time.Now().Add(cfg.TokenGrace)), p.Err()
}

// giveToken gives a caller the token of a file, or shuts it out and returns why.
func giveToken(c *endpoint.Caller, path string, log *slog.Logger, load loadFile) error {
	token, err := loadToken(path, log, load)
	if err != nil {
		c.ShutOut = err.Error()
		return err
	}
	c.Tokens = []endpoint.Token{token}
	return nil
}

// noteShutOut tells the log which callers are shut out.
func noteShutOut(callers []endpoint.Caller, log *slog.Logger) {
	for _, c := range callers {
		if c.ShutOut != "" {
			log.Error("a caller is shut out: nobody is taken for it", "caller", c.Name, "err", c.ShutOut, "hint", "repair its tokenFile, which is read again when it changes")
		}
	}
}

func ids(configured []int) []uint32 {
	var out []uint32
	for _, id := range configured {
		out = append(out, uint32(id))
	}
	return out
}

// loadToken reads a token file. Where it is missing, a random token of 256 bits is made.
func loadToken(path string, log *slog.Logger, load loadFile) (endpoint.Token, error) {
	text, created, err := load(keyfile.Token, path, func() []byte {
		var random [32]byte
		_, _ = rand.Read(random[:]) // never fails
		return []byte(hex.EncodeToString(random[:]) + "\n")
	})
	if err != nil {
		return endpoint.Token{}, err
	}
	if created {
		log.Info("token created", "path", path)
	}
	token, err := endpoint.NewToken(text)
	if err != nil {
		return endpoint.Token{}, fmt.Errorf("%s: %w", path, err)
	}
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0 {
		log.Warn("everyone on this host can read the token", "path", path, "hint", "chmod o-r "+path)
	}
	return token, nil
}

// ReadToken returns the token that a token file holds, for a client of the endpoint.
func ReadToken(path string) (string, error) {
	text, err := keyfile.Token.Read(path)
	if err != nil {
		return "", err
	}
	if _, err := endpoint.NewToken(text); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// accessKeys returns the access keys of the KMS API.
func accessKeys(configured []config.AccessKey) []kmsserver.AccessKey {
	var keys []kmsserver.AccessKey
	for _, k := range configured {
		keys = append(keys, kmsserver.AccessKey{ID: k.ID, SecretFile: string(k.SecretFile), Actions: k.Actions, Secrets: k.Secrets})
	}
	return keys
}
