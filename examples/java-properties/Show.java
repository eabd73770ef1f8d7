import java.io.FileInputStream;
import java.io.InputStream;
import java.io.PrintStream;
import java.util.Properties;
import java.util.TreeSet;

/** Prints what java.util.Properties reads from a file: java Show.java FILE. */
public class Show {
    public static void main(String[] args) throws Exception {
        Properties properties = new Properties();
        try (InputStream in = new FileInputStream(args[0])) {
            properties.load(in);
        }
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        for (String name : new TreeSet<>(properties.stringPropertyNames())) {
            out.println(name + "=" + properties.getProperty(name));
        }
    }
}
