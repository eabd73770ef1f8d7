package child

import (
	"slices"
	"strings"
)

// steersLoader reports whether a variable of this name makes the dynamic loader, a shell or
// a language runtime load or run what its value says, or look for programs elsewhere. Setting
// one runs code in the application.
func steersLoader(name string) bool {
	name = foldName(name)
	return slices.Contains(loaderNames, name) ||
		slices.ContainsFunc(loaderPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// loaderPrefixes are families in which every member is refused: new ones are added to them
// with each release of their runtime.
var loaderPrefixes = []string{
	// Dynamic loaders of Linux, BSD, Solaris, Irix and macOS.
	"LD_", "_RLD", "DYLD_",
	// Functions exported by bash, which replace commands.
	"BASH_FUNC_",
	// Profilers and hooks of .NET.
	"CORECLR_", "COR_", "DOTNET_STARTUP_HOOKS", "DOTNET_ADDITIONAL_DEPS", "DOTNET_SHARED_STORE",
	// One more per release of Lua, one more per setting of Git.
	"LUA_INIT", "LUA_PATH", "LUA_CPATH", "GIT_CONFIG",
}

// loaderNames are single variables: of C libraries and shells, language runtimes, and
// programs that start others.
var loaderNames = strings.Fields(`
		LIBPATH SHLIB_PATH GLIBC_TUNABLES GCONV_PATH GETCONF_DIR LOCPATH NLSPATH MALLOC_TRACE
		HOSTALIASES LOCALDOMAIN RES_OPTIONS RESOLV_HOST_CONF NIS_PATH

		PATH PATHEXT COMSPEC SYSTEMROOT WINDIR PSMODULEPATH
		SHELL SHELLOPTS BASHOPTS BASH_ENV BASH_LOADABLES_PATH ENV IFS PS4 PROMPT_COMMAND CDPATH FPATH ZDOTDIR

		PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONINSPECT PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONEXECUTABLE
		PYTHONBREAKPOINT PYTHONWARNINGS PYTHONPYCACHEPREFIX PYTHONCASEOK
		NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE NODE_EXTRA_CA_CERTS ELECTRON_RUN_AS_NODE
		BUN_OPTIONS DENO_DIR
		JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS JAVA_OPTS JAVA_HOME CLASSPATH
		CATALINA_OPTS MAVEN_OPTS GRADLE_OPTS
		RUBYOPT RUBYLIB RUBYSHELL GEM_HOME GEM_PATH BUNDLE_GEMFILE
		PERL5OPT PERL5LIB PERLLIB PERL5DB PERL5SHELL PERLIO PERL_HASH_SEED_DEBUG
		PHPRC PHP_INI_SCAN_DIR
		ERL_LIBS ERL_FLAGS ERL_AFLAGS ERL_ZFLAGS ELIXIR_ERL_OPTIONS
		R_PROFILE R_PROFILE_USER R_ENVIRON R_ENVIRON_USER R_LIBS
		GODEBUG GOFLAGS RUSTC_WRAPPER

		GIT_SSH GIT_SSH_COMMAND GIT_EXEC_PATH GIT_EXTERNAL_DIFF GIT_ASKPASS GIT_EDITOR GIT_PAGER GIT_PROXY_COMMAND GIT_TEMPLATE_DIR
		SSH_ASKPASS SUDO_ASKPASS EDITOR VISUAL PAGER BROWSER LESSOPEN LESSCLOSE MANPAGER
		OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES SSLKEYLOGFILE
		GTK_MODULES GTK_PATH GIO_EXTRA_MODULES QT_PLUGIN_PATH TERMINFO TERMINFO_DIRS TERMCAP TZDIR`)
