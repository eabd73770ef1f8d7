package convert

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// vaultAgent converts the configuration of Vault Agent, or OpenBao's.
func (c *converter) vaultAgent(nodes []*node) error {
	c.upstream()
	const (
		connection = "nothing connects to Vault any more: move the secrets, see the names above"
		identity   = "nothing signs in to Vault any more; upstream.alibaba.credentials says how the agent identifies itself to the cloud"
	)
	known := c.shared()
	known["vault"] = c.without(connection)
	known["auto_auth"] = c.without(identity)
	known["exit_after_auth"] = c.without(`"secretagent render --once" renders and exits`)
	known["cache"] = c.without("the cache is always there; cache.sealed keeps an encrypted copy over a restart")
	known["api_proxy"] = c.without("only reads of secrets are served, each caller by a token of its own")
	known["disable_idle_connections"], known["disable_keep_alives"] = c.without(connection), c.without(connection)
	known["template_config.static_secret_render_interval"] = c.duration(time.Second, maxTTL, func(_ *node, d time.Duration) {
		c.out.in("cache").set("ttl", d)
	})
	for _, name := range []string{"exit_on_retry_failure", "max_connections_per_host", "lease_renewal_threshold"} {
		known["template_config."+name] = c.without("a file that cannot be rendered stays as it is and is tried again; /ready tells")
	}
	known["listener.tcp"], known["listener.unix"] = c.section(c.listenerTCP), c.section(c.listenerUnix)
	known["env_template"] = c.section(func(n *node) {
		for _, v := range n.below {
			c.section(c.envTemplate)(v)
		}
	})
	known["exec.command"] = c.texts(c.execCommand)
	known["exec.restart_on_secret_changes"] = c.choice(map[string]string{"always": "restart", "never": "ignore"}, func(word string) {
		c.out.in("exec").set("onChange", word)
	})
	known["exec.restart_stop_signal"] = c.choice(signals(append(changeSignals, "SIGTERM", "SIGKILL")), func(word string) { c.out.in("exec").set("stopSignal", word) })
	known["exec.child_process_stdout"], known["exec.child_process_stderr"] = c.without(toChild), c.without(toChild)
	c.each(nodes, "", known)
	return c.finish()
}

const toChild = "the child writes to the outputs of the agent"

// consulTemplate converts the configuration of consul-template.
func (c *converter) consulTemplate(nodes []*node) error {
	c.upstream()
	known := c.shared()
	for name, reason := range map[string]string{
		"consul": "nothing connects to Consul any more: move the keys that are secret, see the names above",
		"vault":  "nothing connects to Vault any more: move the secrets, see the names above",
		"nomad":  "nothing connects to Nomad",
		"once":   `"secretagent render --once" renders and exits`, "parse_only": `"secretagent check" parses the templates`,
		"max_stale": "it is about Consul's servers; cache.maxStale bounds how old a value may be", "block_query_wait": "changes are seen within cache.ttl, or at once from the built-in backend",
		"deduplicate": "every agent renders for itself, from its cache", "reload_signal": "SIGHUP reloads the configuration, and its change does",
		"kill_signal": "SIGTERM and SIGINT stop the agent", "dump_signal": `"secretagent status" shows what the agent holds`,
		"syslog": toStderr, "template_error_fatal": "a file that cannot be rendered stays as it is and is tried again; /ready tells",
		"err_on_failed_lookup": "a secret that is missing is always an error",
	} {
		known[name] = c.without(reason)
	}
	known["wait"] = func(n *node) { c.wait = n }
	known["default_left_delimiter"] = c.text(func(_ *node, text string) { c.delims[0] = text })
	known["default_right_delimiter"] = c.text(func(_ *node, text string) { c.delims[1] = text })
	known["exec"] = c.section(c.exec)
	c.each(nodes, "", known)
	return c.finish()
}

// shared are the rules of what both have.
func (c *converter) shared() rules {
	known := rules{
		"template":  c.section(c.outputFile),
		"pid_file":  c.without("systemd and the runtime of containers know the process"),
		"log_level": c.level(),
		"log_format": c.choice(map[string]string{"standard": "text", "json": "json"}, func(word string) {
			c.out.in("log").set("format", word)
		}),
		"telemetry": c.without("GET /metrics of the endpoint answers Prometheus"),
	}
	for _, name := range []string{"log_file", "log_rotate_duration", "log_rotate_bytes", "log_rotate_max_files"} {
		known[name] = c.without(toStderr)
	}
	return known
}

func signals(names []string) map[string]string {
	words := map[string]string{}
	for _, name := range names {
		words[strings.ToLower(name)] = name
		words[strings.ToLower(strings.TrimPrefix(name, "SIG"))] = name
	}
	return words
}

var changeSignals = []string{"SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"}

// listenerTCP makes the endpoint of a listener.
func (c *converter) listenerTCP(n *node) {
	endpoint := c.out.in("endpoint")
	if endpoint.has("listen") {
		c.note(c.file, n.line, "listener", "is left out: there is one TCP address")
		return
	}
	endpoint.set("listen", "127.0.0.1:8200")
	c.serveVault()
	tls := &mapping{}
	pem := func(key string) rule { return c.text(func(_ *node, text string) { tls.set(key, text) }) }
	c.each(n.below, "listener.tcp.", rules{
		"listener.tcp.address": c.text(func(n *node, text string) {
			if !loopback.MatchString(text) {
				c.note(c.file, n.line, n.key, "is 127.0.0.1:8200: an address that is not loopback needs endpoint.allowNonLoopback and endpoint.tls")
				return
			}
			endpoint.set("listen", text)
		}),
		"listener.tcp.tls_disable":            func(*node) {},
		"listener.tcp.tls_cert_file":          pem("certFile"),
		"listener.tcp.tls_key_file":           pem("keyFile"),
		"listener.tcp.tls_client_ca_file":     pem("clientCAFile"),
		"listener.tcp.require_request_header": c.without(requestHeader),
		"listener.tcp.role":                   c.without(oneListener),
		"listener.tcp.agent_api":              c.without("there is no API to stop the agent: a signal does"),
		"listener.tcp.tls_min_version":        c.without("TLS 1.2 is the least"),
	})
	if off := n.child("tls_disable"); tls.has("certFile") && tls.has("keyFile") && (off == nil || off.text == "false" || off.text == "0") {
		endpoint.set("tls", tls)
	} else if off == nil {
		c.note(c.file, n.line, "listener", "is plain HTTP on this host: endpoint.tls takes a certificate")
	}
}

const (
	requestHeader = "a token is always wanted, which is more"
	oneListener   = "metrics and secrets have one listener; endpoint.callers say who may read the metrics"
)

var loopback = regexp.MustCompile(`^(127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}$`)

// listenerUnix makes the socket of a listener.
func (c *converter) listenerUnix(n *node) {
	endpoint := c.out.in("endpoint")
	if endpoint.has("socket") {
		c.note(c.file, n.line, "listener", "is left out: there is one socket")
		return
	}
	endpoint.set("socket", "$STATE_DIRECTORY/run/agent.sock")
	c.serveVault()
	owner := func(key string) rule { return c.text(func(_ *node, text string) { endpoint.set(key, text) }) }
	c.each(n.below, "listener.unix.", rules{
		"listener.unix.address":                c.text(func(_ *node, text string) { endpoint.set("socket", text) }),
		"listener.unix.socket_mode":            c.mode(func(mode string) { endpoint.set("socketMode", quoted(mode)) }),
		"listener.unix.socket_user":            owner("socketUser"),
		"listener.unix.socket_group":           owner("socketGroup"),
		"listener.unix.tls_disable":            func(*node) {},
		"listener.unix.require_request_header": c.without(requestHeader),
		"listener.unix.role":                   c.without(oneListener),
	})
}

// serveVault makes the endpoint a KV store of Vault: of the mounts that are declared, or of secret.
func (c *converter) serveVault() {
	endpoint := c.out.in("endpoint")
	mounts := slices.Sorted(maps.Keys(c.mounts))
	if len(mounts) == 0 {
		mounts = []string{"secret"}
	}
	endpoint.set("vaultMounts", mounts)
	endpoint.set("tokenFile", "$STATE_DIRECTORY/run/token")
	c.note(c.file, 0, "listener {}", "applications send the token of endpoint.tokenFile as X-Vault-Token and can only read secrets, "+
		"below the mounts of endpoint.vaultMounts; {name: kv, version: 1} is one of KV v1; a prefix of --mount is part of the path")
}

func quoted(s string) raw { return raw(`"` + s + `"`) }

// mode takes permission bits: octal in a text, or a number as HCL writes it.
func (c *converter) mode(fn func(mode string)) rule {
	return c.text(func(n *node, text string) {
		base := 8
		if n.number && !strings.HasPrefix(text, "0") {
			base = 10 // JSON has no octal numbers
		}
		bits, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), base, 32)
		if err != nil || bits == 0 || bits > 0o777 {
			c.unfit(n, `permission bits in octal, such as "0600"`)
			return
		}
		fn(fmt.Sprintf("%04o", bits))
	})
}

// plainWords matches a command that needs no shell.
var plainWords = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,= -]+$`)

// command returns the program and arguments of a command. Where it is one text, a shell runs it
// there.
func command(n *node) []string {
	if n.kind == list {
		return n.list
	}
	if plainWords.MatchString(n.text) && !strings.Contains(strings.Fields(n.text + " x")[0], "=") {
		return strings.Fields(n.text)
	}
	return []string{"sh", "-c", n.text}
}

func (c *converter) execCommand(n *node, _ []string) {
	c.out.in("exec").set("command", command(n))
}

// exec converts the child process of consul-template.
func (c *converter) exec(n *node) {
	exec := c.out.in("exec")
	env := func(key string) rule { return c.texts(func(_ *node, texts []string) { exec.set(key, texts) }) }
	c.each(n.below, "exec.", rules{
		"exec.enabled":        func(*node) {},
		"exec.command":        c.texts(c.execCommand),
		"exec.splay":          c.duration(0, 24*time.Hour, func(_ *node, d time.Duration) { exec.set("splay", d) }),
		"exec.kill_timeout":   c.duration(time.Millisecond, time.Hour, func(_ *node, d time.Duration) { exec.set("grace", d) }),
		"exec.kill_signal":    c.choice(signals(append(changeSignals, "SIGTERM", "SIGKILL")), func(word string) { exec.set("stopSignal", word) }),
		"exec.reload_signal":  c.choice(signals(append(changeSignals, "SIGTERM")), func(word string) { c.childSignal = word }),
		"exec.env.pristine":   c.boolean(func(_ *node, yes bool) { exec.set("pristine", yes) }),
		"exec.env.allowlist":  env("allow"),
		"exec.env.whitelist":  env("allow"),
		"exec.env.denylist":   env("deny"),
		"exec.env.blacklist":  env("deny"),
		"exec.env.custom":     c.without("name the variables before the program, as in command: [env, NAME=VALUE, program]"),
		"exec.env.custom_env": c.without("name the variables before the program, as in command: [env, NAME=VALUE, program]"),
		"exec.timeout":        c.without("the child runs as long as it wants"),
		"exec.reload_timeout": c.without("the child runs as long as it wants"),
	})
	if off := n.child("enabled"); off != nil && off.text == "false" {
		c.note(c.file, n.line, "exec", "is left out: it is not enabled")
		c.out.remove("exec")
		return
	}
	if !exec.has("command") {
		c.note(c.file, n.line, "exec", "has no command: give it on the command line, secretagent exec -- COMMAND")
	}
	if n.child("reload_signal") == nil {
		c.note(c.file, n.line, "exec", "restarts the child when a value of exec.env changes; for a file, a template's hook signals it: hook: {signal: {child: true}}")
	}
	if n.child("kill_signal") == nil {
		exec.set("stopSignal", "SIGINT") // the default there
	}
}

// envTemplate makes a variable of the child.
func (c *converter) envTemplate(v *node) {
	var src *node
	left, right := "", ""
	c.each(v.below, "env_template.", rules{
		"env_template.contents":             c.text(func(n *node, _ string) { src = n }),
		"env_template.source":               c.text(func(n *node, _ string) { src = n }),
		"env_template.left_delimiter":       c.text(func(_ *node, text string) { left = text }),
		"env_template.right_delimiter":      c.text(func(_ *node, text string) { right = text }),
		"env_template.error_on_missing_key": c.missingKey(),
		"env_template.error_fatal":          c.without("the child waits for its values; exec.startTimeout bounds that"),
	})
	if src == nil {
		c.note(c.file, v.line, "env_template "+v.key, "has neither contents nor source")
		return
	}
	text := src.text
	if strings.EqualFold(src.key, "source") {
		b, err := c.opts.ReadFile(src.text)
		if err != nil {
			c.note(c.file, src.line, "env_template "+v.key, "is left out: its source cannot be read")
			return
		}
		text = string(b)
	}
	name, field, ok := c.oneField(text, left, right)
	if !ok {
		c.note(c.file, v.line, "env_template "+v.key, "is left out: a variable is a secret or one field of it here; store what it is made of as a field, or render a file")
		return
	}
	variable := &mapping{}
	variable.set("name", v.key)
	variable.set("secret", name)
	if field != "" {
		variable.set("field", field)
	}
	c.out.in("exec").add("env", variable)
}

// outputFile is a template with its destination.
type outputFile struct {
	at        *node
	source    *node
	inline    bool
	left      string
	right     string
	hasWait   bool
	hasMode   bool
	converted mapping
}

func (c *converter) outputFile(n *node) {
	f := &outputFile{at: n, left: c.delims[0], right: c.delims[1]}
	out := &f.converted
	out.set("contents", contents("")) // comes first
	account := func(key string) rule {
		return c.text(func(_ *node, text string) {
			if text != "" && text != "-1" {
				out.set(key, accountText(text))
			}
		})
	}
	hook := func(key string, value any) { out.in("hook").set(key, value) }
	timeout := c.duration(100*time.Millisecond, time.Hour, func(_ *node, d time.Duration) { hook("timeout", d) })
	c.each(n.below, "template.", rules{
		"template.source":               c.text(func(n *node, _ string) { f.source = n }),
		"template.contents":             c.text(func(n *node, _ string) { f.source, f.inline = n, true }),
		"template.destination":          c.text(func(_ *node, text string) { out.set("destination", text) }),
		"template.create_dest_dirs":     c.boolean(func(n *node, yes bool) { c.createFolders(n, yes) }),
		"template.perms":                c.mode(func(mode string) { f.hasMode = true; out.set("mode", quoted(mode)) }),
		"template.user":                 account("user"),
		"template.uid":                  account("user"),
		"template.group":                account("group"),
		"template.gid":                  account("group"),
		"template.backup":               c.boolean(func(_ *node, yes bool) { out.set("backup", yes) }),
		"template.command":              c.texts(func(n *node, _ []string) { c.hookCommand(n, out) }),
		"template.command_timeout":      timeout,
		"template.exec.command":         c.texts(func(n *node, _ []string) { c.hookCommand(n, out) }),
		"template.exec.timeout":         timeout,
		"template.error_on_missing_key": c.missingKey(),
		"template.error_fatal":          c.without("a file that cannot be rendered stays as it is and is tried again; /ready tells"),
		"template.left_delimiter":       c.text(func(_ *node, text string) { f.left = text }),
		"template.right_delimiter":      c.text(func(_ *node, text string) { f.right = text }),
		"template.wait":                 func(n *node) { f.hasWait = true; c.setWait(n, out) },
		"template.sandbox_path":         c.without("a template reads no files; render.root bounds where files are written"),
		"template.function_denylist":    c.without("a template has no function that does more than work on text"),
		"template.function_blacklist":   c.without("a template has no function that does more than work on text"),
	})
	c.files = append(c.files, f)
}

func (c *converter) createFolders(n *node, yes bool) {
	if !yes {
		c.note(c.file, n.line, n.key, "folders that are missing are always made")
	}
}

// missingKey is the rule of error_on_missing_key: here it is always so.
func (c *converter) missingKey() rule {
	return c.boolean(func(n *node, yes bool) {
		if !yes {
			c.note(c.file, n.line, n.key, "a field that is missing is always an error here, except in a condition")
		}
	})
}

// accountText writes a user or group; a number is one, too.
func accountText(text string) any {
	if _, err := strconv.Atoi(text); err == nil {
		return quoted(text)
	}
	return text
}

func (c *converter) hookCommand(n *node, out *mapping) {
	if words := command(n); len(words) > 0 && strings.Join(words, "") != "" {
		out.in("hook").set("command", words)
	}
}

// setWait takes wait { min max }, or "min:max".
func (c *converter) setWait(n *node, out *mapping) {
	low, high := n.child("min"), n.child("max")
	if n.kind == scalar {
		least, most, both := strings.Cut(n.text, ":")
		low = &node{key: n.key, line: n.line, text: least}
		if both {
			high = &node{key: n.key, line: n.line, text: most}
		}
	}
	if off := n.child("enabled"); off != nil && off.text == "false" {
		return
	}
	wait := &mapping{}
	if low != nil {
		c.duration(0, time.Hour, func(_ *node, d time.Duration) { wait.set("min", d) })(low)
	}
	if high != nil {
		c.duration(0, time.Hour, func(_ *node, d time.Duration) { wait.set("max", d) })(high)
	}
	if len(wait.keys) > 0 {
		out.set("wait", wait)
	}
	for _, other := range n.below {
		if key := strings.ToLower(other.key); key != "min" && key != "max" && key != "enabled" {
			c.note(c.file, other.line, "wait."+other.key, "is not known here")
		}
	}
}

// finish converts the templates, when everything that bears on them is known.
func (c *converter) finish() error {
	for i, f := range c.files {
		out := &f.converted
		if !out.has("destination") {
			c.note(c.file, f.at.line, "template", "is left out: it has no destination")
			continue
		}
		if !filepath.IsAbs(out.values["destination"].(string)) {
			c.note(c.file, f.at.line, "template", "has a destination relative to the folder of agent.yaml; there it is the working folder")
		}
		if !f.hasMode {
			out.set("mode", quoted("0644"))
			c.note(c.file, f.at.line, "template", `has no perms, which means 0644 there; mode: "0600" keeps other users out`)
		}
		if c.wait != nil && !f.hasWait {
			c.setWait(c.wait, out)
		}
		hook, hooked := out.values["hook"].(*mapping)
		if hooked && !hook.has("command") {
			c.note(c.file, f.at.line, "template", "has a timeout for no command")
			out.remove("hook")
			hooked = false
		}
		if c.childSignal != "" && !hooked {
			signal := out.in("hook").in("signal")
			signal.set("child", true)
			signal.set("name", c.childSignal)
		} else if c.childSignal != "" {
			c.note(c.file, f.at.line, "template", "runs its command and does not signal the child: one hook follows a change")
		}
		text, err := c.templateText(f)
		if err != nil {
			return err
		}
		if f.left != "" || f.right != "" {
			out.set("leftDelim", orElse(f.left, "{{"))
			out.set("rightDelim", orElse(f.right, "}}"))
		}
		if c.opts.Apart {
			name := fmt.Sprintf("templates/%d-%s.tmpl", i+1, path.Base(filepath.ToSlash(out.values["destination"].(string))))
			c.templates = append(c.templates, File{name, text})
			out.rename("contents", "source", "./"+name)
		} else {
			out.set("contents", contents(text))
		}
		c.out.add("templates", out)
	}
	if exec, ok := c.out.values["exec"].(*mapping); ok && len(exec.keys) == 0 {
		c.out.remove("exec")
	}
	if endpoint := c.out.in("endpoint"); !endpoint.has("listen") {
		endpoint.set("listen", raw("off"))
		if !endpoint.has("socket") {
			endpoint.set("socket", "$STATE_DIRECTORY/run/agent.sock") // for get and status
		}
	}
	return nil
}

func orElse(text, fallback string) string {
	if text == "" {
		return fallback
	}
	return text
}

// templateText returns the new template of a file.
func (c *converter) templateText(f *outputFile) (string, error) {
	failing := func(what, reason string) (string, error) {
		c.note(c.file, f.at.line, what, reason)
		return orElse(f.left, "{{") + " fail " + strconv.Quote(what+" "+reason) + " " + orElse(f.right, "}}"), nil
	}
	switch {
	case f.source == nil:
		return failing("the template", "has neither source nor contents")
	case f.inline:
		key := f.source
		place := func(int) int { return key.line }
		if key.heredoc {
			place = func(line int) int { return key.line + line }
		}
		return c.template(c.file, place, key.text, f.left, f.right)
	}
	name := f.source.text
	src, err := c.opts.ReadFile(name)
	if err != nil {
		return failing("the source "+name, "could not be read when this was converted: convert it with --template, and put it here")
	}
	return c.template(name, func(line int) int { return line }, string(src), f.left, f.right)
}
