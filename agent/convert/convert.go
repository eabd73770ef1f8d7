package convert

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Tools are the programs whose configurations can be read.
var Tools = []string{"kms-agent", "aws-agent", "vault-agent", "consul-template"}

// Options are what a conversion needs besides the file.
type Options struct {
	// From is one of [Tools].
	From string

	// Region is that of Alibaba Cloud KMS where the secrets are. Without, they are in the
	// built-in backend, or where the configuration of Alibaba's KMS Agent says.
	Region string

	// Mounts are mounts of Vault with what stands before the names of their secrets:
	// {"kv": "team/"} makes team/app of kv/data/app. Those that are not in it have nothing before.
	Mounts map[string]string

	// Env is what templates get for variables of the environment.
	Env map[string]string

	// Apart puts templates into files of their own, below templates/, instead of into agent.yaml.
	Apart bool

	// ReadFile reads a template that the configuration names. Required.
	ReadFile func(path string) ([]byte, error)

	// Function reports whether a template may call a function. Required.
	Function func(name string) bool
}

// Result is a configuration of ours.
type Result struct {
	Config    string // agent.yaml
	Templates []File // the templates that it names; none unless Options.Apart
	Notes     []Note // what has no counterpart; the configuration says it too
}

// File is a file to write, by its path relative to that of agent.yaml.
type File struct{ Path, Text string }

// Note names what has no counterpart, or another meaning, and says what to do. It quotes no value.
type Note struct {
	File   string
	Line   int // 0 when unknown
	Key    string
	Reason string
}

// String returns the note in one line.
func (n Note) String() string {
	switch {
	case n.File == "":
		return n.Key + ": " + n.Reason
	case n.Line == 0:
		return n.File + ": " + n.Key + ": " + n.Reason
	}
	return n.File + ":" + strconv.Itoa(n.Line) + ": " + n.Key + ": " + n.Reason
}

// converter is a conversion in progress.
type converter struct {
	opts   Options
	file   string
	mounts map[string]string
	names  map[string]string // :: path in Vault or Consul → name here
	taken  map[string]string // :: name here → the first path that became it
	order  []string          // of names
	notes  []Note
	noted  map[Note]bool

	out       mapping // agent.yaml
	templates []File
	files     []*outputFile

	// Of all templates.
	delims      [2]string // where they say none
	wait        *node     // where they say none
	childSignal string    // that a change sends to the child; empty for none
}

func newConverter(file string, opts Options) *converter {
	c := &converter{
		opts: opts, file: file,
		mounts: map[string]string{}, names: map[string]string{}, taken: map[string]string{}, noted: map[Note]bool{},
	}
	for mount, prefix := range opts.Mounts {
		c.mounts[strings.Trim(mount, "/")] = prefix
	}
	return c
}

// note notes once what has no counterpart.
func (c *converter) note(file string, line int, key, reason string) {
	if n := (Note{file, line, key, reason}); !c.noted[n] {
		c.noted[n] = true
		c.notes = append(c.notes, n)
	}
}

// Template rewrites a template of Vault Agent or consul-template. file is what notes call it.
func Template(file string, src []byte, left, right string, opts Options) (string, []Note, error) {
	c := newConverter(file, opts)
	text, err := c.template(file, func(line int) int { return line }, string(src), left, right)
	slices.SortStableFunc(c.notes, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	return text, c.notes, err
}

// Config converts the configuration src of another program. file is what notes and comments call
// it. The error is an [InputError].
func Config(file string, src []byte, opts Options) (Result, error) {
	if err := checkText(file, src); err != nil {
		return Result{}, err
	}
	if err := checkDepth(file, src); err != nil {
		return Result{}, err
	}
	c := newConverter(file, opts)
	var (
		err   error
		nodes []*node
	)
	switch opts.From {
	case "kms-agent", "aws-agent":
		nodes, err = parseTOML(file, src)
	case "vault-agent", "consul-template":
		nodes, err = parseHCL(file, src)
	default:
		err = &InputError{File: file, Reason: "is of an unknown program: one of " + strings.Join(Tools, ", ") + " can be read"}
	}
	if err != nil {
		return Result{}, err
	}
	c.out.in("upstream") // comes first
	switch opts.From {
	case "kms-agent":
		err = c.kmsAgent(nodes)
	case "aws-agent":
		c.awsAgent(nodes)
	case "vault-agent":
		err = c.vaultAgent(nodes)
	case "consul-template":
		err = c.consulTemplate(nodes)
	}
	if err != nil {
		return Result{}, err
	}
	slices.SortStableFunc(c.notes, func(a, b Note) int { return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line)) })
	return Result{c.print(), c.templates, c.notes}, nil
}

// upstream says where the secrets are.
func (c *converter) upstream() {
	up := c.out.in("upstream")
	if c.opts.Region == "" {
		local := up.in("local")
		local.set("database", "$STATE_DIRECTORY/data/secrets.db")
		local.set("keyring", "$STATE_DIRECTORY/keys/keyring.json")
		return
	}
	endpoint := &mapping{}
	endpoint.set("region", c.opts.Region)
	up.in("alibaba").add("endpoints", endpoint)
}

// print returns agent.yaml.
func (c *converter) print() string {
	var b strings.Builder
	say := func(format string, args ...any) { comment(&b, " ", fmt.Sprintf(format, args...)) }
	say("Made from %s by: secretagent config convert --from %s", c.file, c.opts.From)
	say("secretagent help agent.yaml explains every key; secretagent check tells what this machine lacks.")
	if up := c.out.in("upstream"); up.has("local") {
		b.WriteString("#\n")
		say("The secrets are in the built-in backend: store them with \"secretagent secret create NAME --data-file FILE\", or convert with --region to have them in Alibaba Cloud KMS.")
	}
	if len(c.order) > 0 {
		b.WriteString("#\n")
		say("The secrets that take the place of what was read there. What was several fields is one JSON object.")
		for _, path := range c.order {
			comment(&b, "   ", path+" → "+c.names[path])
		}
		say("--mount MOUNT=PREFIX gives other names. Unlike there, a field that is missing or null is an error, except in a condition.")
	}
	if len(c.notes) > 0 {
		b.WriteString("#\n")
		say("What has no counterpart, or not the same:")
		for _, n := range c.notes {
			comment(&b, "   ", n.String())
		}
	}
	b.WriteString("\n")
	order := []string{"upstream", "cache", "endpoint", "templates", "exec", "log"}
	slices.SortFunc(c.out.keys, func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) })
	c.out.write(&b, "", "")
	return b.String()
}

// A rule takes a key, with all below it, over into the configuration, or notes why not.
type rule func(*node)

// rules are the keys that are known, by their names from the top with dots between.
type rules map[string]rule

// without returns a rule for a key that has no counterpart.
func (c *converter) without(reason string) rule {
	return func(n *node) {
		key := n.key
		if n.kind == block {
			key += " {}"
		}
		c.note(c.file, n.line, key, reason)
	}
}

// each applies the rules to nodes. What no rule knows is noted, so that nothing gets lost.
func (c *converter) each(nodes []*node, above string, known rules) {
	for _, n := range nodes {
		key := above + strings.ToLower(n.key)
		switch apply := known[key]; {
		case apply != nil:
			apply(n)
		case n.kind == block && known.below(key):
			c.each(n.below, key+".", known)
		default:
			c.without("is not known here: see whether \"secretagent help agent.yaml\" has it")(&node{key: above + n.key, line: n.line, kind: n.kind})
		}
	}
}

// below reports whether a rule is about something below key.
func (r rules) below(key string) bool {
	for known := range r {
		if strings.HasPrefix(known, key+".") {
			return true
		}
	}
	return false
}

// The functions below make rules for values. What a value is not fit for is noted, and left out.

func (c *converter) unfit(n *node, want string) {
	c.note(c.file, n.line, n.key, "is left out: here it must be "+want)
}

func (c *converter) section(fn rule) rule {
	return func(n *node) {
		if n.kind != block {
			c.unfit(n, "a block")
			return
		}
		fn(n)
	}
}

func (c *converter) text(fn func(n *node, text string)) rule {
	return func(n *node) {
		if n.kind != scalar {
			c.unfit(n, "a text")
			return
		}
		fn(n, n.text)
	}
}

func (c *converter) texts(fn func(n *node, texts []string)) rule {
	return func(n *node) {
		if n.kind != scalar && n.kind != list || len(n.texts()) == 0 {
			c.unfit(n, "a list of texts")
			return
		}
		fn(n, n.texts())
	}
}

func (c *converter) boolean(fn func(n *node, yes bool)) rule {
	return c.text(func(n *node, text string) {
		yes, err := strconv.ParseBool(text)
		if err != nil {
			c.unfit(n, "true or false")
			return
		}
		fn(n, yes)
	})
}

func (c *converter) integer(least, most int, fn func(n *node, number int)) rule {
	return c.text(func(n *node, text string) {
		number, err := strconv.Atoi(text)
		if err != nil || number < least || number > most {
			c.unfit(n, fmt.Sprintf("a number from %d to %d", least, most))
			return
		}
		fn(n, number)
	})
}

func (c *converter) duration(least, most time.Duration, fn func(n *node, d time.Duration)) rule {
	return c.text(func(n *node, _ string) {
		d, ok := n.duration()
		if !ok || d < least || d > most {
			c.unfit(n, fmt.Sprintf("a duration from %s to %s", shortDuration(least), shortDuration(most)))
			return
		}
		fn(n, d)
	})
}

// choice takes one of some words; want maps what may stand there to what stands here.
func (c *converter) choice(want map[string]string, fn func(word string)) rule {
	return c.text(func(n *node, text string) {
		word, ok := want[strings.ToLower(text)]
		if !ok {
			c.note(c.file, n.line, n.key, "is left out: its value has no counterpart")
			return
		}
		fn(word)
	})
}

// level is the rule of a log level.
func (c *converter) level() rule {
	return c.choice(map[string]string{
		"trace": "debug", "debug": "debug", "info": "info", "notice": "info", "warn": "warn", "warning": "warn", "err": "error", "error": "error",
	}, func(word string) { c.out.in("log").set("level", word) })
}
