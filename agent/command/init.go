package command

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

//go:embed init/agent.yaml.tmpl
var initText string

var initTemplate = template.Must(template.New("agent.yaml").Option("missingkey=error").Parse(initText))

// option is an answer to one of the questions of init.
type option struct{ word, means string }

var (
	initFor = []option{
		{"developer", "on a developer's machine"},
		{"systemd", "as a service of systemd"},
		{"docker", "as a container of Docker"},
		{"kubernetes", "as a sidecar in a pod of Kubernetes"},
	}
	initUpstream = []option{
		{"local", "the built-in backend: a file of this host"},
		{"etcd", "the built-in backend on a cluster of etcd"},
		{"alibaba", "Alibaba Cloud KMS Secrets Manager"},
	}
	initCredentials = []option{
		{"default", "environment, CLI profile, RAM role: the first that there is"},
		{"ecs_ram_role", "the RAM role of the ECS instance"},
		{"oidc_role_arn", "RRSA, in a pod of ACK"},
		{"access_key", "an access key, in two files"},
	}
)

// plan is what init was told.
type plan struct {
	For, Upstream, Credentials string
	Region                     string
	Endpoints                  []string // of etcd
	Secrets                    []upstream.SecretRef
}

func (a *app) initCommand() *cobra.Command {
	var (
		p       plan
		secrets []string
		path    string
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a configuration to begin with",
		Long: `Write a commented agent.yaml for the place where the agent is to run and for where the secrets
are. What no flag says is asked on a terminal. A file that is there is never replaced.
"secretagent check" looks at what you make of it, and "secretagent help agent.yaml" prints all
keys that there are.`,
		Example: `  secretagent init
  secretagent init --for developer --upstream local --secret app/db
  secretagent init --for systemd --upstream local --out /etc/secretagent/agent.yaml
  secretagent init --for kubernetes --upstream alibaba --region cn-hangzhou \
    --credentials oidc_role_arn --secret app/db --out -`,
		Args: cobra.NoArgs,
		RunE: a.run(func(_ context.Context, _ []string) error {
			if path != "-" { // before anybody answers questions in vain
				if _, err := os.Lstat(path); err == nil {
					return exists(path)
				}
			}
			slices.Sort(secrets)
			for _, name := range slices.Compact(secrets) {
				ref, err := upstream.ParseSecretRef(name)
				if err != nil {
					return usageError{fmt.Errorf("--secret: %w", err)}
				}
				p.Secrets = append(p.Secrets, ref)
			}
			if err := a.askPlan(&p); err != nil {
				return err
			}
			text, err := p.configuration(path)
			if err != nil {
				return err
			}
			if path == "-" {
				return a.write(text)
			}
			if err := createFile(path, text); err != nil {
				return err
			}
			a.printf("wrote %s; %s", path, p.next(path))
			return nil
		}),
	}
	for _, f := range []struct {
		name, usage string
		value       *string
		options     []option
	}{
		{"for", "`place` where the agent is to run", &p.For, initFor},
		{"upstream", "`kind` of upstream, where the secrets are", &p.Upstream, initUpstream},
		{"credentials", "`type` of credentials for the cloud", &p.Credentials, initCredentials},
	} {
		words := wordsOf(f.options)
		cmd.Flags().StringVar(f.value, f.name, "", f.usage+": "+strings.Join(words, ", "))
		_ = cmd.RegisterFlagCompletionFunc(f.name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	cmd.Flags().StringSliceVar(&p.Endpoints, "endpoints", nil, "`addresses` of the members of etcd, such as https://etcd-0:2379")
	cmd.Flags().StringVar(&p.Region, "region", "", "`region` of the cloud, such as cn-hangzhou")
	cmd.Flags().StringArrayVar(&secrets, "secret", nil, "`NAME[:Label]` of a secret that the application needs; may be repeated")
	cmd.Flags().StringVar(&path, "out", "agent.yaml", "`file` to write; - prints it")
	return cmd
}

func wordsOf(options []option) (words []string) {
	for _, o := range options {
		words = append(words, o.word)
	}
	return words
}

// askPlan completes p on a terminal. Without one, what is missing is an error that names its flag.
func (a *app) askPlan(p *plan) error {
	asked := bufio.NewReader(io.LimitReader(a.Stdin, 4096))
	if err := a.ask(asked, "Where does the agent run?", "for", &p.For, initFor); err != nil {
		return err
	}
	if err := a.ask(asked, "Where are the secrets?", "upstream", &p.Upstream, initUpstream); err != nil {
		return err
	}
	if p.Upstream == "etcd" {
		if len(p.Endpoints) == 0 {
			var members string
			if err := a.ask(asked, "Which members has the cluster, such as https://etcd-0:2379? (with commas between)", "endpoints", &members, nil); err != nil {
				return err
			}
			p.Endpoints = strings.Split(members, ",")
		}
		for i, member := range p.Endpoints {
			member = strings.TrimSpace(member)
			if u, err := url.Parse(member); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Scheme+"://"+u.Host != member {
				return usagef("--endpoints: must be addresses such as https://etcd-0:2379")
			}
			p.Endpoints[i] = member
		}
	} else if len(p.Endpoints) > 0 {
		return usagef("--endpoints belongs to --upstream etcd")
	}
	if p.Upstream != "alibaba" {
		for flag, value := range map[string]string{"region": p.Region, "credentials": p.Credentials} {
			if value != "" {
				return usagef("--%s belongs to --upstream alibaba", flag)
			}
		}
		return nil
	}
	if err := a.ask(asked, "How does the agent identify itself?", "credentials", &p.Credentials, initCredentials); err != nil {
		return err
	}
	if err := a.ask(asked, "In which region, such as cn-hangzhou?", "region", &p.Region, nil); err != nil {
		return err
	}
	if !isRegion.MatchString(p.Region) {
		return usagef("--region: must be the name of a region, such as cn-hangzhou")
	}
	return nil
}

var isRegion = regexp.MustCompile(`^[a-z]+(-[a-z0-9]+)+$`)

// ask completes the value of a flag on a terminal: by the number of one of the options or its word,
// or any text where there are none.
func (a *app) ask(in *bufio.Reader, question, flag string, value *string, options []option) error {
	words := wordsOf(options)
	if *value != "" {
		if len(words) > 0 && !slices.Contains(words, *value) {
			return usagef("--%s: must be one of %s", flag, strings.Join(words, ", "))
		}
		return nil
	}
	if !isTerminal(a.Stdin) {
		return usagef("there is no terminal to ask on: --%s is needed", flag)
	}
	fmt.Fprintln(a.Stderr, question)
	for i, o := range options {
		fmt.Fprintf(a.Stderr, "  %d  %-13s  %s\n", i+1, o.word, o.means)
	}
	for range 3 {
		fmt.Fprint(a.Stderr, "> ")
		line, err := in.ReadString('\n')
		answer := strings.TrimSpace(line)
		if n, err := strconv.Atoi(answer); err == nil && n >= 1 && n <= len(words) {
			answer = words[n-1]
		}
		if answer != "" && (len(words) == 0 || slices.Contains(words, answer)) {
			*value = answer
			return nil
		}
		if err != nil {
			fmt.Fprintln(a.Stderr)
			break
		}
	}
	return usagef("there was no answer: --%s is needed", flag)
}

// configuration returns agent.yaml.
func (p *plan) configuration(path string) ([]byte, error) {
	data := struct {
		plan
		Where, Command string
		Notes          []string
		Keyring, Apart string // and how it is kept apart from the database
		Shared         string // the keyring that all agents on etcd have
		Run, API, Keys string // folders: of the token, of the socket of the KMS API, of access keys
	}{plan: *p, Command: p.command(path), Run: "/run/secretagent", API: "/var/lib/secretagent/run",
		Keyring: "/var/lib/secretagent/keys/keyring.json", Keys: "/etc/secretagent", Shared: "/etc/secretagent/keyring.json"}
	for _, o := range initFor {
		if o.word == p.For {
			data.Where = o.means
		}
	}
	switch p.For {
	case "developer":
		data.Run, data.Keys, data.Shared = "$STATE_DIRECTORY/run", "$STATE_DIRECTORY/keys", "$STATE_DIRECTORY/keys/keyring.json"
		data.Notes = []string{"Everything that the agent writes lies in the folder var beside this file."}
	case "systemd":
		data.API, data.Keyring = data.Run, "/etc/secretagent/keyring.json"
		data.Apart = "the keyring is root's, and the unit hands a copy\n    # to the service (--keyring). Do not back them up to the same place."
		data.Notes = []string{
			"It belongs to /etc/secretagent/agent.yaml. State lies in /var/lib/secretagent, token and sockets in",
			"/run/secretagent: StateDirectory= and RuntimeDirectory= of the unit make both.",
		}
		if p.Upstream == "alibaba" {
			data.Notes = append(data.Notes, "The unit reaches loopback only: allow the addresses of KMS (IPAddressAllow=) with systemctl edit.")
		}
	case "docker":
		data.Apart = "mount a volume of its own at the folder of the keyring."
		data.Notes = []string{
			"It is mounted at /etc/secretagent/agent.yaml. State lies in a volume at /var/lib/secretagent. The",
			"token lies in a volume in memory at /run/secretagent, which applications mount too, made by",
			"",
			"  docker volume create -o type=tmpfs -o device=tmpfs -o o=uid=65532,gid=65532,mode=0750 secretagent-run",
		}
	case "kubernetes":
		data.Keys, data.Apart = "/run/secrets/secretagent", "keep them on different volumes."
		data.Shared = data.Keys + "/keyring.json"
		data.Notes = []string{
			"It is the content of a ConfigMap, mounted at /etc/secretagent. The token lies in an emptyDir in",
			"memory at /run/secretagent, which the application mounts too.",
		}
	}
	var b bytes.Buffer
	if err := initTemplate.Execute(&b, data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// command returns the call that gives the same file without questions.
func (p *plan) command(path string) string {
	words := []string{"secretagent init --for", p.For, "--upstream", p.Upstream}
	if p.Upstream == "alibaba" {
		words = append(words, "--credentials", p.Credentials, "--region", p.Region)
	}
	if len(p.Endpoints) > 0 {
		words = append(words, "--endpoints", strings.Join(p.Endpoints, ","))
	}
	for _, ref := range p.Secrets {
		words = append(words, "--secret", ref.String())
	}
	if path != "agent.yaml" {
		words = append(words, "--out", path)
	}
	return strings.Join(words, " ")
}

// next returns what to do with the file.
func (p *plan) next(path string) string {
	switch p.For {
	case "systemd":
		return "read it, put it at /etc/secretagent/agent.yaml, then: secretagent check && systemctl enable --now secretagent"
	case "docker":
		return "read it, put it into a folder conf as agent.yaml, then: docker run --read-only -v ./conf:/etc/secretagent:ro -v secretagent:/var/lib/secretagent -v secretagent-run:/run/secretagent secretagent:dev"
	case "kubernetes":
		return "read it, then: kubectl create configmap secretagent --from-file agent.yaml=" + path
	}
	return "read it, then: secretagent run --config " + path
}

// createFile writes a new file, which others may read: a configuration names secrets and has none.
func createFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return exists(path)
	} else if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
	}
	return err
}

// exists says that path is not replaced.
func exists(path string) error {
	return usageError{withHint(fmt.Errorf("%s is there already", path), "no file is replaced: name another with --out, or - to print")}
}
