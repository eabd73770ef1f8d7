package child

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
)

// marker is in every secret of these tests; it must not come out anywhere but in values.
const marker = "s3cr3t-marker"

// recipeOf returns the recipe of an environment that inherits nothing.
func recipeOf(variables ...Variable) *recipe { return newRecipe(Options{Env: variables}, nil) }

func TestEnvironmentOfSecrets(t *testing.T) {
	src := newSource(map[string]string{
		"plain": marker + "\nsecond line \x01=$\"'\n",
		"empty": "",
		"db": `{"user":"app","password":"` + marker + `","port":5432,"big":12345678901234567890,"ratio":1.50,"tls":true,
			"hosts":[ "a", {"b" : 1} ],"none":null,"text":"tab\té\u2028"}`,
		"spread": `{"api.key":"k1","Region-Name":"r1","_x":1}`,
	})
	for _, c := range []struct {
		name string
		env  []Variable
		want []string
	}{
		{"a whole secret is taken byte by byte",
			[]Variable{{Name: "A", Ref: ref("plain")}, {Name: "B", Ref: ref("empty")}},
			[]string{"A=" + marker + "\nsecond line \x01=$\"'\n", "B="}},
		{"a field is a string, a number or a boolean as JSON spells it",
			[]Variable{
				{Name: "USER", Ref: ref("db"), Field: "user"}, {Name: "PORT", Ref: ref("db"), Field: "port"},
				{Name: "BIG", Ref: ref("db"), Field: "big"}, {Name: "RATIO", Ref: ref("db"), Field: "ratio"},
				{Name: "TLS", Ref: ref("db"), Field: "tls"}, {Name: "TEXT", Ref: ref("db"), Field: "text"},
			},
			[]string{"BIG=12345678901234567890", "PORT=5432", "RATIO=1.50", "TEXT=tab\té\u2028", "TLS=true", "USER=app"}},
		{"an object or array is compact JSON",
			[]Variable{{Name: "HOSTS", Ref: ref("db"), Field: "hosts"}},
			[]string{`HOSTS=["a",{"b":1}]`}},
		{"a spread takes every key as it is",
			[]Variable{{Ref: ref("spread")}},
			[]string{"Region-Name=r1", "_x=1", "api.key=k1"}},
		{"a spread changes case, sanitizes and prefixes",
			[]Variable{{Ref: ref("spread"), Prefix: "app_", Case: UpperCase, Sanitize: true}},
			[]string{"app_API_KEY=k1", "app_REGION_NAME=r1", "app__X=1"}},
		{"a spread changes to lower case",
			[]Variable{{Ref: ref("spread"), Case: LowerCase, Keys: map[string]string{"Region-Name": ""}}},
			[]string{"region-name=r1"}},
		{"keys pick and rename",
			[]Variable{{Ref: ref("db"), Prefix: "DB_", Case: UpperCase, Keys: map[string]string{"user": "", "password": "PGPASSWORD"}}},
			[]string{"DB_USER=app", "PGPASSWORD=" + marker}},
	} {
		t.Run(c.name, func(t *testing.T) {
			env, err := recipeOf(c.env...).read(t.Context(), src)
			must(t, err)
			if !slices.Equal(env.pairs, c.want) {
				t.Errorf("got  %q\nwant %q", env.pairs, c.want)
			}
		})
	}
}

func TestEnvironmentErrorsNameVariableAndSecretAndNoValue(t *testing.T) {
	src := newSource(map[string]string{
		"nul":      marker + "\x00",
		"jsonnul":  `{"a":"` + marker + `\u0000"}`,
		"null":     `{"a":null,"b":"` + marker + `"}`,
		"text":     marker,
		"list":     `["` + marker + `"]`,
		"nothing":  `null`,
		"latin1":   `{"a":"` + marker + "\xff" + `"}`,
		"trailing": `{"a":"x"} ` + marker,
		"huge":     strings.Repeat(marker, maxVariableSize/len(marker)+1),
		"db":       `{"user":"` + marker + `","User":"` + marker + `"}`,
		"other":    `{"user":"` + marker + `"}`,
		"badnames": `{"":"` + marker + `","a=b":"` + marker + `","a\u0000b":"` + marker + `","a\nb":"` + marker + `"}`,
	})
	for _, c := range []struct {
		name string
		env  []Variable
		want []string // parts of the error
	}{
		{"NUL in a whole secret", []Variable{{Name: "A", Ref: ref("nul")}}, []string{"A: secret nul:ACSCurrent: ", "NUL"}},
		{"NUL in a field", []Variable{{Name: "A", Ref: ref("jsonnul"), Field: "a"}}, []string{`A: secret jsonnul:ACSCurrent, field "a": `, "NUL"}},
		{"NUL in a spread", []Variable{{Ref: ref("jsonnul")}}, []string{`a: secret jsonnul:ACSCurrent, key "a": `, "NUL"}},
		{"null in a field", []Variable{{Name: "A", Ref: ref("null"), Field: "a"}}, []string{"A: secret null", "is null"}},
		{"null in a spread", []Variable{{Ref: ref("null")}}, []string{"a: secret null", "is null"}},
		{"a field that is not there", []Variable{{Name: "A", Ref: ref("db"), Field: "pass"}}, []string{"A: secret db", `no key "pass"`}},
		{"a key that is not there", []Variable{{Ref: ref("db"), Keys: map[string]string{"pass": "PASS"}}}, []string{"PASS: secret db", `no key "pass"`}},
		{"a field of text", []Variable{{Name: "A", Ref: ref("text"), Field: "a"}}, []string{"A: secret text", "not a JSON object"}},
		{"a spread of text", []Variable{{Ref: ref("text")}}, []string{"secret text", "not a JSON object"}},
		{"a spread of an array", []Variable{{Ref: ref("list")}}, []string{"secret list", "not a JSON object"}},
		{"a spread of null", []Variable{{Ref: ref("nothing")}}, []string{"secret nothing", "not a JSON object"}},
		{"JSON that is not UTF-8", []Variable{{Ref: ref("latin1")}}, []string{"secret latin1", "not a JSON object"}},
		{"text after the object", []Variable{{Ref: ref("trailing")}}, []string{"secret trailing", "not a JSON object"}},
		{"more than a variable can hold", []Variable{{Name: "ABC", Ref: ref("huge")}}, []string{"ABC: secret huge", "at most 131072"}},
		{"keys that cannot be names", []Variable{{Ref: ref("badnames")}}, []string{"empty", `"a=b"`, `"a\x00b"`, `"a\nb"`}},
		{"two keys with one name", []Variable{{Ref: ref("db"), Case: UpperCase}},
			[]string{`USER: set by secret db:ACSCurrent, key "User" and by secret db:ACSCurrent, key "user"`}},
		{"two spreads with one name", []Variable{{Ref: ref("db")}, {Ref: ref("other")}},
			[]string{`user: set by secret db:ACSCurrent, key "user" and by secret other:ACSCurrent, key "user"`}},
		{"a spread over a variable", []Variable{{Name: "user", Ref: ref("text")}, {Ref: ref("other")}},
			[]string{`user: set by secret text:ACSCurrent and by secret other:ACSCurrent, key "user"`}},
		{"every problem at once", []Variable{{Name: "A", Ref: ref("nul")}, {Name: "B", Ref: ref("null"), Field: "a"}}, []string{"A: ", "B: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			env, err := recipeOf(c.env...).read(t.Context(), src)
			if err == nil || env.pairs != nil || env.digest != (digest{}) {
				t.Fatalf("%d variables and %v, want an error alone", len(env.pairs), err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is missing in %q", part, err)
				}
			}
			if strings.Contains(err.Error(), marker) {
				t.Errorf("the value shows in %q", err)
			}
			if mayPass(err) {
				t.Error("waiting is said to help")
			}
		})
	}
}

func TestUpstreamErrorsNameTheVariables(t *testing.T) {
	r := recipeOf(Variable{Name: "A", Ref: ref("gone"), Field: "a"}, Variable{Name: "B", Ref: ref("gone")}, Variable{Name: "C", Ref: ref("other")},
		Variable{Ref: ref("gone"), Prefix: "X_"})
	_, err := r.read(t.Context(), newSource(map[string]string{"other": marker}))
	if !errors.Is(err, upstream.ErrNotFound) {
		t.Fatalf("%v does not wrap the cause", err)
	}
	want := "A, B, the variables named by gone:ACSCurrent: GetSecretValue gone:ACSCurrent: not found"
	if err.Error() != want {
		t.Errorf("got  %q\nwant %q", err, want)
	}
}

func TestSecretsAreAskedForOnceAndTogether(t *testing.T) {
	current := upstream.SecretRef{SecretName: "db", VersionStage: upstream.ACSCurrent}
	previous := upstream.SecretRef{SecretName: "db", VersionStage: upstream.ACSPrevious}
	r := recipeOf(Variable{Name: "A", Ref: ref("db"), Field: "user"}, Variable{Name: "B", Ref: ref("db")}, Variable{Name: "C", Ref: current},
		Variable{Name: "D", Ref: previous}, Variable{Ref: ref("db")}, Variable{Ref: ref("other")})
	if want := []upstream.SecretRef{current, previous, ref("other").WithDefaults()}; !slices.Equal(r.refs, want) {
		t.Errorf("asks for %v, want %v", r.refs, want)
	}
}

func TestLoaderVariablesAreRefusedUnlessNamed(t *testing.T) {
	for _, name := range []string{
		"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_SOMETHING_NEW", "DYLD_INSERT_LIBRARIES", "BASH_ENV", "ENV", "PATH", "IFS",
		"BASH_FUNC_ls%%", "SHELLOPTS", "PYTHONSTARTUP", "PYTHONPATH", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "PERL5OPT", "RUBYOPT",
		"GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "DOTNET_STARTUP_HOOKS", "GLIBC_TUNABLES", "GCONV_PATH", "LUA_INIT_5_4", "OPENSSL_CONF",
	} {
		src := newSource(map[string]string{"s": `{"` + name + `":"` + marker + `"}`})
		_, err := recipeOf(Variable{Ref: ref("s")}).read(t.Context(), src)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "secret s:") || strings.Contains(err.Error(), marker) {
			t.Errorf("%s from a secret: %v", name, err)
		}
		for what, v := range map[string]Variable{
			"env":          {Name: name, Ref: ref("s"), Field: name},
			"keys":         {Ref: ref("s"), Keys: map[string]string{name: ""}},
			"renamed keys": {Ref: ref("s"), Keys: map[string]string{name: "HARMLESS"}},
			"a prefix":     {Ref: ref("s"), Prefix: "APP_"},
		} {
			if env, err := recipeOf(v).read(t.Context(), src); err != nil || len(env.pairs) != 1 {
				t.Errorf("%s named in %s: %d variables, %v", name, what, len(env.pairs), err)
			}
		}
	}
	// The name counts as it comes out, not as it is in the secret.
	src := newSource(map[string]string{"s": `{"preload":"x"}`})
	if _, err := recipeOf(Variable{Ref: ref("s"), Prefix: "LD_", Case: UpperCase}).read(t.Context(), src); err == nil {
		t.Error("a prefix smuggled LD_PRELOAD in")
	}
	for _, name := range []string{"DB_PASSWORD", "API_KEY", "OLD_PATH", "PASSWORD", "USER", "HOST", "ENVIRONMENT"} {
		if steersLoader(name) {
			t.Errorf("%s is refused", name)
		}
	}
}

func TestInheritance(t *testing.T) {
	parent := []string{
		"HOME=/root", "PATH=/bin", "LANG=C", "LC_ALL=C", "DB_PASSWORD=old", "AWS_SECRET=x", "EMPTY=", "PWD=/somewhere", "HOME=/again",
		"CLOUD_KEY=k", "CLOUD_TOKEN=t", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "WATCHDOG_PID=1", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=a", "malformed", "",
	}
	for _, c := range []struct {
		name string
		opts Options
		want []string
	}{
		{"everything by default, the first of two", Options{},
			[]string{"AWS_SECRET=x", "DB_PASSWORD=new", "EMPTY=", "HOME=/root", "LANG=C", "LC_ALL=C", "PATH=/bin", "PWD=/somewhere"}},
		{"nothing when pristine", Options{Pristine: true}, []string{"DB_PASSWORD=new"}},
		{"what is allowed when pristine", Options{Pristine: true, Allow: []string{"PATH", "L*"}},
			[]string{"DB_PASSWORD=new", "LANG=C", "LC_ALL=C", "PATH=/bin"}},
		{"only what is allowed", Options{Allow: []string{"H?ME"}}, []string{"DB_PASSWORD=new", "HOME=/root"}},
		{"all but what is denied", Options{Deny: []string{"AWS_*", "L*", "PWD"}},
			[]string{"DB_PASSWORD=new", "EMPTY=", "HOME=/root", "PATH=/bin"}},
		{"deny wins over allow", Options{Allow: []string{"*"}, Deny: []string{"*"}}, []string{"DB_PASSWORD=new"}},
		{"deny does not concern secrets", Options{Deny: []string{"DB_*"}, Allow: []string{"HOME"}}, []string{"DB_PASSWORD=new", "HOME=/root"}},
		{"the service manager's variables are ours even when allowed", Options{Allow: []string{"NOTIFY_SOCKET", "LISTEN_*"}}, []string{"DB_PASSWORD=new"}},
		{"no pattern stands for a credential", Options{Allow: []string{"CLOUD_*", "*_KEY", "CLOUD_TOKE?", "HOME"}}, []string{"DB_PASSWORD=new", "HOME=/root"}},
		{"credentials that are named", Options{Allow: []string{"H*", "CLOUD_KEY"}}, []string{"CLOUD_KEY=k", "DB_PASSWORD=new", "HOME=/root"}},
		{"credentials that are named and denied", Options{Allow: []string{"CLOUD_KEY", "H*"}, Deny: []string{"CLOUD_*"}}, []string{"DB_PASSWORD=new", "HOME=/root"}},
		{"the working directory follows", Options{Allow: []string{"PWD"}, Dir: "/elsewhere"}, []string{"DB_PASSWORD=new", "PWD=/elsewhere"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Withheld = []string{"CLOUD_KEY", "CLOUD_TOKEN", "CLOUD_NONE"}
			c.opts.Env = []Variable{{Name: "DB_PASSWORD", Ref: ref("db")}}
			env, err := newRecipe(c.opts, parent).read(t.Context(), newSource(map[string]string{"db": "new"}))
			must(t, err)
			if !slices.Equal(env.pairs, c.want) {
				t.Errorf("got  %q\nwant %q", env.pairs, c.want)
			}
		})
	}
}

func TestDigestTellsEveryDifference(t *testing.T) {
	of := func(r *recipe, data string) digest {
		t.Helper()
		env, err := r.read(t.Context(), newSource(map[string]string{"s": data}))
		must(t, err)
		return env.digest
	}
	r := recipeOf(Variable{Ref: ref("s")})
	same := of(r, `{"A":"x","B":"y"}`)
	if same != of(r, `{ "B":"\u0079", "A":"x" }`) {
		t.Error("another spelling of the same variables is a difference")
	}
	seen := map[digest]string{same: "the first"}
	for _, data := range []string{`{}`, `{"A":"x"}`, `{"A":"x","B":"z"}`, `{"A":"y","B":"x"}`, `{"A":"xB","y":""}`, `{"AB":"xy"}`, `{"A":"x","B":"y","C":""}`} {
		if first, taken := seen[of(r, data)]; taken {
			t.Errorf("%s cannot be told from %s", data, first)
		}
		seen[of(r, data)] = data
	}
	if of(recipeOf(Variable{Ref: ref("s")}), `{"A":"x","B":"y"}`) == same {
		t.Error("digests have no key of their own")
	}
}

func TestFoldName(t *testing.T) {
	if got := foldName("Path") == foldName("PATH"); got != (runtime.GOOS == "windows") {
		t.Errorf("Path and PATH are one variable: %t", got)
	}
}

func FuzzAssemble(f *testing.F) {
	f.Add(`{"a":"b"}`, "", "upper", true)
	f.Add(`{"LD_PRELOAD":"x"}`, "", "", false)
	f.Add(`{"a=b":1,"":[null]}`, "P_", "lower", false)
	f.Add(`{"p`+"\x00"+`":{}}`, "LD_", "keep", true)
	f.Fuzz(func(t *testing.T, data, prefix, fold string, sanitize bool) {
		v := Variable{Ref: ref("s"), Prefix: prefix, Case: Case(fold), Sanitize: sanitize}
		var problems upstream.OptionErrors
		if (Options{Env: []Variable{v}}).checkEnv(&problems); len(problems) > 0 {
			return
		}
		env, err := recipeOf(v).read(t.Context(), newSource(map[string]string{"s": data}))
		if err != nil {
			if env.pairs != nil {
				t.Fatal("an environment beside an error")
			}
			return
		}
		names := map[string]bool{}
		for _, pair := range env.pairs {
			name, _, ok := strings.Cut(pair, "=")
			if !ok || name == "" || strings.ContainsRune(pair, 0) || names[name] || steersLoader(name) || len(pair) >= maxVariableSize {
				t.Fatalf("%q in an environment", pair)
			}
			names[name] = true
		}
	})
}
