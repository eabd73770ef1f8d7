package agent

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kmsserver"
)

// loadCallers returns who may ask the endpoint: the configured callers or, without any, every
// holder of the agent's token. The error is [upstream.OptionErrors] below the section endpoint.
func loadCallers(cfg *config.Endpoint, log *slog.Logger, load loadFile) ([]endpoint.Caller, error) {
	var p upstream.OptionErrors
	if len(cfg.Callers) == 0 {
		token, err := loadToken(string(cfg.TokenFile), log, load)
		p.Add("tokenFile", err)
		return []endpoint.Caller{endpoint.DefaultCaller(token)}, p.Err()
	}
	var callers []endpoint.Caller
	for i, c := range cfg.Callers {
		caller := endpoint.Caller{Name: c.Name, UIDs: ids(c.UIDs), GIDs: ids(c.GIDs), Secrets: c.Secrets}
		if c.TokenFile != "" {
			token, err := loadToken(string(c.TokenFile), log, load)
			p.Add(fmt.Sprintf("callers[%d].tokenFile", i), err)
			caller.Tokens = []endpoint.Token{token}
		}
		callers = append(callers, caller)
	}
	return callers, p.Err()
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
