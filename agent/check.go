package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"secretagent/agent/config"
	"secretagent/agent/listen"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
)

// Check returns every problem of cfg that its parts know of, as [upstream.OptionErrors] with
// keys from the top of agent.yaml; nil when there are none. It reads what cfg names (templates,
// tokens, keyrings, certificates), looks for programs, users and groups, and changes nothing. [New]
// refuses what it lets pass only because of what other processes do. It has the type [config.Rules].
func Check(cfg *config.Config) error {
	var p upstream.OptionErrors
	p.Add("", checkUpstream(cfg))
	p.Add("", ofCache(cacheOptions(cfg, slog.New(slog.DiscardHandler)).Validate()))
	p.Add("endpoint", checkEndpoint(&cfg.Endpoint))
	p.Add(sectionMetrics, checkMetrics(cfg))
	p.Add("", checkOutputs(cfg, false))
	p.Add("", CheckExec(false)(cfg))
	p.Add("", CheckRotations(cfg))
	return p.Err()
}

// OtherUser returns the number of the user that the agent of cfg runs as, where this process is root
// and the state directory shows that it is another; zero: it may be root.
func OtherUser(cfg *config.Config) (uid int) {
	info, err := os.Stat(cfg.StateDir())
	if os.Geteuid() != 0 || err != nil {
		return 0
	}
	return max(keyfile.Owner(info), 0)
}

// CheckForUser is [Check] for the user that the agent runs as: with [OtherUser] it leaves out what only
// an agent of root refuses.
func CheckForUser(cfg *config.Config) error {
	var p upstream.OptionErrors
	p.Add("", Check(cfg))
	if OtherUser(cfg) != 0 {
		p = slices.DeleteFunc(p, func(e *upstream.OptionError) bool { return errors.Is(e, keyfile.ErrForeign) })
	}
	return p.Err()
}

// checkCallers returns why callers and access keys are shut out. It is apart from Check, because
// that is no problem of the configuration: the agent runs, without them. To root it also tells of
// token files that an agent of this user would refuse: one of another user may be meant.
func checkCallers(cfg *config.Config) error {
	preview := previewFile
	if OtherUser(cfg) != 0 {
		preview = previewForAnyUser
	}
	callers, err := loadCallers(&cfg.Endpoint, nil, slog.New(slog.DiscardHandler), preview)
	var p upstream.OptionErrors
	p.Add("endpoint", err)
	for i, c := range callers {
		if c.ShutOut != "" {
			p.Addf(fmt.Sprintf("endpoint.callers[%d].tokenFile", i), "", "%s", c.ShutOut)
		}
	}
	if api, section := cfg.Upstream.API(); api != nil {
		p.Add(section, kmsserver.CheckSecretFiles(accessKeys(api.AccessKeys)))
	}
	return p.Err()
}

// checkNames returns which declared secrets are not where applications of the
// KMS Agent look for them first. They have other ways to ask.
func checkNames(cfg *config.Config) error {
	var p upstream.OptionErrors
	opts := endpointOptions(&cfg.Endpoint, nil)
	for i, s := range cfg.Secrets {
		if name := s.Name.SecretName; opts.Hides(name) {
			p.Addf(fmt.Sprintf("secrets[%d].name", i), string(name), "is hidden by endpoint.vaultMounts: GET %s%s is a request of Vault's; ask with secretId=, or with %%2F in place of the slashes", cfg.Endpoint.PathPrefix, name)
		}
	}
	return p.Err()
}

// Warnings returns, as [Check] does, what is odd about a valid configuration: the agent runs all
// the same.
func Warnings(cfg *config.Config) error {
	var p upstream.OptionErrors
	p.Add("", checkCallers(cfg))
	p.Add("", checkNames(cfg))
	p.Add("", checkScrapeToken(&cfg.Metrics))
	p.Add("upstream.local", checkDatabase(cfg.Upstream.Local))
	p.Add("", checkDestinations(cfg))
	p.Add("", checkRegions(cfg))
	return p.Err()
}

// checkDestinations returns which files this process cannot write. It is no problem of the configuration: the
// agent may have other rights, a volume may come later, and what cannot be written keeps nothing else from working.
func checkDestinations(cfg *config.Config) error {
	var p upstream.OptionErrors
	look := func(key string, folder string) {
		if err := keyfile.CheckWritable(folder); err != nil {
			p.Addf(key, "", "cannot be written: %v", err)
		}
	}
	if cfg.Render.Root != "" {
		return nil // a folder that others hold: only rendering shows
	}
	for i := range cfg.Templates {
		look(fmt.Sprintf("templates[%d].destination", i), keyfile.Folder(string(cfg.Templates[i].Destination)))
	}
	for i := range cfg.Sets {
		look(fmt.Sprintf("sets[%d].directory", i), string(cfg.Sets[i].Directory))
	}
	return p.Err()
}

// checkDatabase returns why this process could not open the database or make it, which is no problem of the
// configuration: the agent may be another user.
func checkDatabase(cfg *config.Local) error {
	if cfg == nil {
		return nil
	}
	path := string(cfg.Database)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = keyfile.CheckWritable(keyfile.Folder(path))
	} else if err == nil {
		err = file.Close()
	}
	var p upstream.OptionErrors
	if err != nil {
		p.Addf("database", "", "cannot be used by this user: %v", keyfile.Denied(path, err))
	}
	return p.Err()
}

// checkRegions returns which regions of the cloud are probably misspelt.
func checkRegions(cfg *config.Config) error {
	var p upstream.OptionErrors
	if a := cfg.Upstream.Alibaba; a != nil {
		for i, e := range a.Endpoints {
			if meant, ok := kms.MisspeltRegion(e.Region); ok {
				p.Addf(fmt.Sprintf("upstream.alibaba.endpoints[%d].region", i), e.Region, "is no region that is known here; did you mean %s?", meant)
			}
		}
	}
	return p.Err()
}

// CheckFiles is [Check] of what [RenderOnce] needs. Without hooks their programs may be missing.
func CheckFiles(noHooks bool) config.Rules {
	return func(cfg *config.Config) error {
		var p upstream.OptionErrors
		p.Add("", checkUpstream(cfg))
		p.Add("", checkOutputs(cfg, noHooks))
		return p.Err()
	}
}

// CheckExec is [Check] of the section exec. Where the command comes from the command line, the
// one of the file does not matter.
func CheckExec(other bool) config.Rules {
	return func(cfg *config.Config) error {
		if cfg.Exec == nil {
			return nil
		}
		opts := childOptions(cfg, slog.New(slog.DiscardHandler))
		if other || len(opts.Command) == 0 {
			self, err := os.Executable() // stands in for it
			if err != nil {
				return err
			}
			opts.Command = []string{self}
		}
		return inSection("exec", opts.Validate())
	}
}

// inSection returns the problems of a part's options with the section before their keys; nil for
// nil.
func inSection(section string, err error) error {
	var p upstream.OptionErrors
	p.Add(section, err)
	return p.Err()
}

func checkUpstream(cfg *config.Config) error {
	if u := cfg.Upstream; u.Local == nil && u.Etcd == nil && u.Alibaba == nil {
		return nil // config tells
	}
	k := kindOf(&cfg.Upstream)
	return inSection("upstream."+k.name(), k.check())
}

// ofCache returns problems of the cache's options with the keys of the sections cache and secrets.
func ofCache(err error) error {
	var p upstream.OptionErrors
	p.Add("cache", err)
	for _, e := range p {
		if pin, ok := strings.CutPrefix(e.Key, "cache.pins"); ok {
			e.Key = "secrets" + pin
		}
	}
	return p.Err()
}

// checkOutputs checks the sections templates, sets and render.
func checkOutputs(cfg *config.Config, noHooks bool) error {
	opts := renderOptions(cfg, slog.New(slog.DiscardHandler))
	opts.NoHooks = noHooks
	if cfg.Exec != nil {
		opts.Signal = func(os.Signal) error { return nil } // there will be a child
	}
	return opts.Validate()
}

func checkEndpoint(cfg *config.Endpoint) error {
	var p upstream.OptionErrors
	callers, err := loadCallers(cfg, nil, slog.New(slog.DiscardHandler), previewForAnyUser)
	p.Add("", err)
	p.Add("", endpointOptions(cfg, callers).Validate())
	p.Add("", checkListeners(endpointListeners(cfg)))
	if cfg.Credentials != nil {
		p.Add("credentials", unitCredentialOptions(cfg.Credentials).Validate())
		p.Add("credentials", checkListeners(unitCredentialListeners(cfg.Credentials)))
	}
	if a := cfg.Audit; a != nil && a.File != "" {
		p.Add("audit.file", checkAuditFile(string(a.File)))
	}
	return p.Err()
}

// checkAuditFile returns why the audit log cannot be appended to path, as far as that shows
// without making the file.
func checkAuditFile(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return errors.New("must be a file, not a folder")
	}
	if err == nil && info.Mode()&(fs.ModeDevice|fs.ModeSocket) != 0 {
		return nil // such as /dev/stdout, which may be another one for the agent
	}
	f, err := keyfile.OpenLog(path, false)
	if err == nil {
		return f.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return keyfile.CheckWritable(filepath.Dir(path))
	}
	return err
}

func checkListeners(list []listen.Options) error {
	var p upstream.OptionErrors
	for _, opts := range list {
		p.Add("", opts.Validate())
	}
	return p.Err()
}

// loadFile returns the content of a secret file, which fresh makes where it is missing; see
// [keyfile.Kind.Load].
type loadFile func(kind keyfile.Kind, path string, fresh func() []byte) (text []byte, created bool, err error)

// previewFile is what [keyfile.Kind.Load] would do, without making a file.
func previewFile(kind keyfile.Kind, path string, fresh func() []byte) (text []byte, created bool, err error) {
	if err := kind.Check(path); err != nil {
		return nil, false, err
	}
	text, err = kind.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh(), false, nil
	}
	return text, false, err
}

// previewForAnyUser is previewFile where root may check the configuration of an agent that is to run
// as another user, and so as the owner of its files.
func previewForAnyUser(kind keyfile.Kind, path string, fresh func() []byte) (text []byte, created bool, err error) {
	text, created, err = previewFile(kind, path, fresh)
	if errors.Is(err, keyfile.ErrStranger) && os.Geteuid() == 0 {
		text, err = keyfile.ReadFile(path, keyfile.MaxToken)
	}
	return text, created, err
}

// HasTemplateFunction reports whether a template may call the function.
func HasTemplateFunction(name string) bool { return render.HasFunction(name) }
