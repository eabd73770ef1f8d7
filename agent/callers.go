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
		kind, err := tokenKind(cfg.TokenMode, cfg.TokenGroup, nil)
		switch {
		case err != nil:
			p.Add("", err)
		case cfg.TokenVariable() == "":
			p.Add("tokenFile", giveToken(&caller, kind, string(cfg.TokenFile), log, load))
		default:
			p.Add("tokenFile", giveFromEnvironment(&caller, kind, cfg, log, load))
		}
		callers = append(callers, caller)
	}
	for i, c := range cfg.Callers {
		caller := endpoint.Caller{Name: c.Name, UIDs: ids(c.UIDs), GIDs: ids(c.GIDs), Secrets: c.Secrets, Format: formatOf(c.Format), List: c.List, Status: c.Status, Metrics: c.Metrics}
		kind, err := tokenKind(c.TokenMode, c.TokenGroup, c.UIDs)
		p.Add(fmt.Sprintf("callers[%d]", i), err)
		if c.TokenFile != "" && err == nil {
			_ = giveToken(&caller, kind, string(c.TokenFile), log, load)
		}
		callers = append(callers, caller)
	}
	return endpoint.WithOverlap(previous, callers, time.Now().Add(cfg.TokenGrace)), p.Err()
}

// tokenKind returns what is asked of a token file that the users of a caller may own. The error is
// [upstream.OptionErrors] below what mode and group belong to.
func tokenKind(mode config.FileMode, group config.Account, uids []int) (keyfile.Kind, error) {
	kind := keyfile.Token.OwnedBy(uids...)
	if mode == 0 {
		return kind, nil
	}
	var p upstream.OptionErrors
	if err := keyfile.CheckShared(mode.Perm()); err != nil {
		p.Addf("tokenMode", fmt.Sprintf("%04o", mode.Perm()), "%v", err)
	}
	gid, err := keyfile.GroupID(string(group))
	if err != nil {
		p.Addf("tokenGroup", string(group), "%v", err)
	}
	return kind.Shared(mode.Perm(), gid), p.Err()
}

// giveFromEnvironment is giveToken where a variable holds the token or names its file.
func giveFromEnvironment(c *endpoint.Caller, kind keyfile.Kind, cfg *config.Endpoint, log *slog.Logger, load loadFile) (err error) {
	if cfg.TokenFile != "" {
		err = giveToken(c, kind, string(cfg.TokenFile), log, load)
	} else if token, failed := endpoint.NewToken([]byte(os.Getenv(cfg.TokenVariable()))); failed == nil {
		c.Tokens = []endpoint.Token{token}
	} else {
		err = failed
	}
	if err != nil {
		err = fmt.Errorf("the variable %s: %w", cfg.TokenVariable(), err)
	}
	return err
}

// noteToken tells the log when the token comes from the environment.
func noteToken(cfg *config.Endpoint, log *slog.Logger) {
	if cfg.TokenVariable() != "" {
		log.Info("the token of the endpoint comes from the environment", "source", TokenSource(cfg))
	}
	if cfg.TokenPassedOver() != "" {
		log.Info("a variable is not taken as the token: it holds a credential of AWS, which applications must not send here", "source", cfg.TokenPassedOver(),
			"hint", "set endpoint.tokenFile, or one of KMS_TOKEN and AWS_TOKEN")
	}
}

// TokenSource says where the token of the endpoint comes from when that is the environment; else it is
// empty.
func TokenSource(cfg *config.Endpoint) string {
	if cfg.TokenVariable() == "" || cfg.TokenFile == "" {
		return cfg.TokenVariable()
	}
	return cfg.TokenVariable() + ", " + string(cfg.TokenFile)
}

// giveToken gives a caller the token of a file, or shuts it out and returns why.
func giveToken(c *endpoint.Caller, kind keyfile.Kind, path string, log *slog.Logger, load loadFile) error {
	token, err := loadToken(kind, path, log, load)
	if err != nil {
		c.ShutOut = err.Error()
		return err
	}
	c.Tokens = []endpoint.Token{token}
	return nil
}

// noteShutOut tells the log which callers and access keys are shut out.
func (a *Agent) noteShutOut(callers []endpoint.Caller) {
	log := a.log
	for id, reason := range a.keysShutOut() {
		log.Error("an access key is shut out: nothing that it signs is taken", "access_key", id, "err", reason, "hint", "repair its secretFile, which is read again when it changes")
	}
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
func loadToken(kind keyfile.Kind, path string, log *slog.Logger, load loadFile) (endpoint.Token, error) {
	text, created, err := load(kind, path, func() []byte {
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
	if kind.IsShared() {
		if err := kind.Unlike(path); err != nil {
			log.Warn("the token file has not the mode and group of tokenMode and tokenGroup, and this process cannot change that", "path", path, "err", err,
				"hint", "its owner can; or remove the file, and the agent makes another token")
		}
	} else if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0 {
		log.Warn("everyone on this host can read the token", "path", path, "hint", "chmod o-r "+path)
	}
	return token, nil
}

// ReadToken returns the token that a token file holds, for a client of the endpoint. The file may be
// that of the agent, of another user.
func ReadToken(path string) (string, error) {
	text, err := keyfile.ReadFile(path, keyfile.MaxToken)
	if err != nil {
		return "", err
	}
	if _, err := endpoint.NewToken(text); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// keysShutOut returns the access keys of the KMS API whose secret file is of no use, and why.
func (a *Agent) keysShutOut() map[string]string {
	if a.api == nil {
		return nil
	}
	return a.api.ShutOut()
}

// InMemory reports whether a file at path is kept in memory, and never on a disk unless the system swaps.
func InMemory(path string) bool { return keyfile.InMemory(path) }

// Whose says to whom a file that a client may not use belongs, and who the client is; empty where the system does
// not tell.
func Whose(path string) string { return keyfile.Whose(path) }

// ReadTokenVariable returns the token that a variable of the environment holds, for a client.
func ReadTokenVariable(name string) (string, error) {
	text := os.Getenv(name)
	if _, err := endpoint.NewToken([]byte(text)); err != nil {
		return "", fmt.Errorf("the variable %s: %w", name, err)
	}
	return strings.TrimSpace(text), nil
}

// accessKeys returns the access keys of the KMS API.
func accessKeys(configured []config.AccessKey) []kmsserver.AccessKey {
	var keys []kmsserver.AccessKey
	for _, k := range configured {
		keys = append(keys, kmsserver.AccessKey{ID: k.ID, SecretFile: string(k.SecretFile), Actions: k.Actions, Secrets: k.Secrets})
	}
	return keys
}
