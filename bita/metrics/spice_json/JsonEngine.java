package bita;

import java.io.Reader;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import javax.script.AbstractScriptEngine;
import javax.script.Bindings;
import javax.script.ScriptContext;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineFactory;
import javax.script.ScriptEngineManager;
import javax.script.ScriptException;
import javax.script.SimpleBindings;

/**
 * Stands in for the JavaScript engine that Java lost in version 15. SPICE 1.0 uses it for one thing only: it puts a
 * JSON text as "jsonString", lets a script lay it out with indents, and gets it back as "result". Here it comes back
 * as it is.
 *
 * scripts/checks/build_spice_engine.py builds the jar, which also names the factory in
 * META-INF/services/javax.script.ScriptEngineFactory.
 */
public final class JsonEngine extends AbstractScriptEngine {
    private final ScriptEngineFactory factory;

    JsonEngine(ScriptEngineFactory factory) {
        this.factory = factory;
    }

    @Override
    public Object eval(String script, ScriptContext context) {
        put("result", get("jsonString"));
        return null;
    }

    @Override
    public Object eval(Reader reader, ScriptContext context) {
        return eval("", context);
    }

    @Override
    public Bindings createBindings() {
        return new SimpleBindings();
    }

    @Override
    public ScriptEngineFactory getFactory() {
        return factory;
    }

    /** Does with the first argument what SPICE does with its scores, and prints it. */
    public static void main(String[] arguments) throws ScriptException {
        ScriptEngine engine = new ScriptEngineManager().getEngineByName("JavaScript");
        engine.put("jsonString", arguments[0]);
        engine.eval("result = JSON.stringify(JSON.parse(jsonString), null, 2)");
        System.out.println(engine.get("result"));
    }

    /** How Java finds the engine. */
    public static final class Factory implements ScriptEngineFactory {
        private static final List<String> NONE = Collections.emptyList();

        @Override
        public ScriptEngine getScriptEngine() {
            return new JsonEngine(this);
        }

        @Override
        public List<String> getNames() {
            return Arrays.asList("JavaScript");
        }

        @Override
        public String getEngineName() {
            return "bita JSON";
        }

        @Override
        public String getEngineVersion() {
            return "1";
        }

        @Override
        public String getLanguageName() {
            return "JSON";
        }

        @Override
        public String getLanguageVersion() {
            return "1";
        }

        @Override
        public List<String> getExtensions() {
            return NONE;
        }

        @Override
        public List<String> getMimeTypes() {
            return NONE;
        }

        @Override
        public Object getParameter(String key) {
            return null;
        }

        @Override
        public String getMethodCallSyntax(String object, String method, String... arguments) {
            return "";
        }

        @Override
        public String getOutputStatement(String text) {
            return "";
        }

        @Override
        public String getProgram(String... statements) {
            return "";
        }
    }
}
